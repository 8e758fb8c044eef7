"""The four trained toys in transformers: what the oracle tests of `slim eval` and of quantized checkpoints compare with.

Everything runs sample by sample: padding would round differently."""
import json
import math

import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

import kit
from kit import SAMPLES

# Toy -> the files it is evaluated on, the file it is calibrated on.
TOYS = {
    "toy-qwen3vl": (("eval_text.txt", "eval.jsonl", "eval_textqa.jsonl"), "calib.jsonl"),
    "toy-qwen25vl": (("eval_text.txt", "eval.jsonl", "eval_textqa.jsonl"), "calib.jsonl"),
    "toy-hunyuan-dense": (("eval_text.txt", "eval_textqa.jsonl"), "calib_textqa.jsonl"),
    "toy-hunyuan-moe": (("eval_text.txt", "eval_textqa.jsonl"), "calib_textqa.jsonl"),
}
NEW_TOKENS = 24


def slim(build, *arguments):
    """The program's JSON."""
    return json.loads(kit.slim(build, *arguments, "--json", OMP_NUM_THREADS="1"))


class Reference:
    """A checkpoint in transformers."""

    def __init__(self, folder, dtype):
        sees = hasattr(AutoConfig.from_pretrained(folder), "vision_config")
        kind = AutoModelForImageTextToText if sees else AutoModelForCausalLM
        self.model, self.loading = kind.from_pretrained(folder, dtype=dtype, output_loading_info=True)
        self.model.eval()
        self.processor = AutoProcessor.from_pretrained(folder) if sees else None
        self.tokenizer = self.processor.tokenizer if sees else AutoTokenizer.from_pretrained(folder)

    def question(self, messages):
        """Inputs up to the beginning of the answer."""
        images = [Image.open(SAMPLES / part["image"]).convert("RGB") for part in messages[0]["content"] if part["type"] == "image"]
        if not images:
            return dict(self.tokenizer.apply_chat_template(messages[:1], add_generation_prompt=True, return_dict=True, return_tensors="pt"))
        text = self.processor.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
        return dict(self.processor(text=[text], images=images, return_tensors="pt"))

    def text(self, line):
        return dict(self.tokenizer(line, return_tensors="pt"))

    def logits(self, inputs):
        """[tokens, vocabulary] fp32."""
        with torch.no_grad():
            return self.model(**inputs, use_cache=False).logits[0].float()

    def answer(self, inputs):
        with torch.no_grad():
            ids = self.model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)[0]
        return self.tokenizer.decode(ids[inputs["input_ids"].shape[1]:], skip_special_tokens=True).strip()

    def likelihood(self, inputs, first):
        """(sum of the negative log-likelihoods of the tokens from `first` on, their number)"""
        ids = inputs["input_ids"][0]
        logits = self.logits(inputs)[first - 1:-1].double().log_softmax(-1)
        return -logits.gather(1, ids[first:, None]).sum().item(), len(ids) - first

    def answered(self, inputs, answer):
        """The inputs of a question followed by an answer and its end."""
        end = self.tokenizer(answer, add_special_tokens=False, return_tensors="pt")["input_ids"]
        ids = torch.cat([inputs["input_ids"], end.long(), torch.tensor([[self.tokenizer.eos_token_id]])], 1)
        longer = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if "mm_token_type_ids" in inputs:
            zeros = torch.zeros(1, ids.shape[1] - inputs["input_ids"].shape[1], dtype=inputs["mm_token_type_ids"].dtype)
            longer["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], zeros], 1)
        return longer

    def evaluate(self, file, limit):
        """{"perplexity", "tokens"[, "answers"]} of a file's first samples, as `slim eval` defines them."""
        lines = (SAMPLES / file).read_text().splitlines()[:limit]
        nll, tokens, answers = 0.0, 0, []
        for line in lines:
            if file.endswith(".txt"):
                loss, count = self.likelihood(self.text(line), 1)
            else:
                messages = json.loads(line)["messages"]
                inputs = self.question(messages)
                loss, count = self.likelihood(self.answered(inputs, messages[1]["content"][0]["text"]), inputs["input_ids"].shape[1])
                answers.append(self.answer(inputs))
            nll, tokens = nll + loss, tokens + count
        return {"perplexity": math.exp(nll / tokens), "tokens": tokens, **({"answers": answers} if answers else {})}


def native_logits(build, folder, batch, dtype):
    """The same token ids and pixels through slim's forward pass of a checkpoint."""
    keys = ("pixel_values", "image_grid_thw")
    samples = [{"input_ids": inputs["input_ids"][0].long(), **{key: inputs[key] for key in keys if key in inputs}} for inputs in batch]
    return kit.native_logits(build, folder, samples, dtype)
