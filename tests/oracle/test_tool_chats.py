"""Chats with functions, calls, answers of tools and thoughts become the prompts that transformers makes of them, through data set, chat template and
tokenizer: for every template of tests/data/chat_templates, keys in the order of the data.

usage: python tests/oracle/test_tool_chats.py --build BUILD_DIR"""
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

from transformers import AutoTokenizer

from kit import DATA, Checks, build_folder, run, tensors_of

TOOLS = [{"type": "function", "function": {"name": "get_weather", "description": "What the sky does: \u00e9 <b> \"q\"",
                                           "parameters": {"type": "object", "required": ["city"], "properties": {
                                               "city": {"type": "string", "description": "where"}, "days": {"type": "integer", "default": 3},
                                               "step": {"type": "number", "default": 0.5}, "deep": {"type": "boolean", "default": None}}}}},
         {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {"b": {"type": "number"}, "a": {"type": "number"}}}}}]
CALL = {"type": "function", "function": {"name": "get_weather", "arguments": {"days": 2, "city": "Pisa", "step": 1.25, "deep": True}}}
CHATS = [
    {"tools": TOOLS, "messages": [{"role": "user", "content": "How is it in Pisa?"}, {"role": "assistant", "content": "", "tool_calls": [CALL]},
                                  {"role": "tool", "content": "{\"sky\": \"blue\"}"}, {"role": "assistant", "content": "Blue."}]},
    {"messages": [{"role": "system", "content": "Be short."}, {"role": "user", "content": "2+2?"},
                  {"role": "assistant", "reasoning_content": "Two and two.", "content": "4"}]},
    {"tools": TOOLS[1:], "messages": [{"role": "user", "content": "Twice"}, {"role": "assistant", "content": "Both.", "tool_calls": [CALL, CALL]},
                                      {"role": "tool", "content": "a"}, {"role": "tool", "content": "b"}, {"role": "user", "content": "And?"}]},
]


class ToolChats(Checks):
    def template(self, build, toy, path, work):
        folder = work / path.stem
        folder.mkdir()
        for file in toy.iterdir():
            if not file.name.startswith("chat_template"):
                (folder / file.name).symlink_to(file)
        shutil.copy(path, folder / "chat_template.jinja")
        data = work / f"{path.stem}.jsonl"
        data.write_text("".join(json.dumps(chat) + "\n" for chat in CHATS))
        tokenizer = AutoTokenizer.from_pretrained(folder)
        output = work / f"{path.stem}-encoded"
        run(build / "bin/slim_encode", folder, data, output, 0)
        found = tensors_of(output)
        for i, chat in enumerate(CHATS):
            expected = tokenizer.apply_chat_template(chat["messages"], tools=chat.get("tools"), tokenize=False)
            ids = found[f"{i}.input_ids"].tolist()
            wanted = tokenizer(expected, add_special_tokens=False)["input_ids"]
            self.expect(ids == wanted, f"{path.name}, chat {i}", f"found\n{tokenizer.decode(ids)}\nexpected\n{expected}")


def main():
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    build = build_folder()
    with tempfile.TemporaryDirectory() as name:
        test = ToolChats()
        for path in sorted((DATA / "chat_templates").glob("*.jinja")):
            test.template(build, DATA / "toy-qwen3vl", path, Path(name))
        return test.exit_code()


if __name__ == "__main__":
    sys.exit(main())
