#!/usr/bin/env python3
"""vllm_answers.py MODEL EVAL_JSONL LIMIT: greedy answers of vLLM's CPU build to questions with pictures, as one JSON list."""
import json
import os
import sys
from pathlib import Path

os.environ.update(VLLM_CPU_KVCACHE_SPACE="1", VLLM_CPU_OMP_THREADS_BIND="nobind", OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1",
                  VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_NO_USAGE_STATS="1", DO_NOT_TRACK="1", VLLM_LOGGING_LEVEL="ERROR")
from PIL import Image
from vllm import LLM, SamplingParams


def main():
    model, data, limit = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    llm = LLM(model=model, dtype="bfloat16", enforce_eager=True, max_model_len=512, max_num_seqs=8, max_num_batched_tokens=512, seed=0,
              enable_prefix_caching=False, limit_mm_per_prompt={"image": 4, "video": 0})
    template = json.loads(Path(model, "chat_template.json").read_text())["chat_template"]
    prompts = []
    for line in data.read_text().splitlines()[:limit]:
        question = json.loads(line)["messages"][:1]
        images = [Image.open(data.parent / part["image"]).convert("RGB") for part in question[0]["content"] if part["type"] == "image"]
        text = llm.get_tokenizer().apply_chat_template(question, tokenize=False, add_generation_prompt=True, chat_template=template)
        prompts.append({"prompt": text, "multi_modal_data": {"image": images}})
    outputs = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=24), use_tqdm=False)
    print(json.dumps([output.outputs[0].text.strip() for output in outputs]), flush=True)
    os._exit(0)  # vLLM's threads would keep the process


main()
