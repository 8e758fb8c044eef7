"""What the oracle tests of text models share: random models, logits, perplexity and answers of the native forward pass against
transformers."""
import json
import math
import os
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from kit import SAMPLES, native_logits, run
from vl_oracle import check

os.environ.setdefault("SLIM_PRODUCTS", "native")  # LibTorch's own products of bf16, as transformers computes them; test_products.py has slim's
MAX_PERPLEXITY = 1e-3  # relative


def make_model(config, seed):
    """A random model whose logits depend on every part of it: weights far from the small ones of initialisation."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() < 2:
                weight.add_(0.2 * torch.randn_like(weight))
            else:
                weight.copy_(torch.randn_like(weight) * 1.2 / weight.shape[-1] ** 0.5)
    return model


def expected_logits(model, ids):
    """One sequence at a time: a batch with padding rounds differently."""
    with torch.no_grad():
        return model(ids[None], use_cache=False).logits[0].float()


def text_logits(build, folder, sequences, dtype):
    return native_logits(build, folder, [{"input_ids": ids} for ids in sequences], dtype)


def check_random_models(build, configs, in_float=lambda name: False, watch=lambda name, model, sequences: None):
    """configs: by name. in_float: parameters that stay fp32 in a bfloat16 checkpoint. watch sees every fp32 model before it runs."""
    good = True
    for seed, (name, config) in enumerate(configs.items()):
        generator = torch.Generator().manual_seed(seed)
        model = make_model(config, seed)
        sequences = [torch.randint(0, config.vocab_size, (n,), generator=generator) for n in (5, 1, 31, 12)]
        watch(name, model, sequences)
        for dtype in (torch.float32, torch.bfloat16):
            for parameter_name, parameter in model.named_parameters():
                if not in_float(parameter_name):
                    parameter.data = parameter.data.to(dtype)
            with tempfile.TemporaryDirectory() as folder:
                model.save_pretrained(folder, max_shard_size="64KB")
                # Loaded anew: changing a model's dtype has consequences that no user of a checkpoint sees.
                loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
                expected = [expected_logits(loaded, ids) for ids in sequences]
                type_name = str(dtype).removeprefix("torch.")
                good &= check(name, expected, text_logits(build, folder, sequences, type_name), type_name)
    return good


def evaluate(build, folder, data, limit):
    return json.loads(run(Path(build) / "bin" / "slim", "eval", folder, "--data", data, "--dtype", "float32", "--limit", limit,
                          "--json"))


def likelihood(model, ids, first):
    """Sum of the negative log-likelihoods of ids[first:]."""
    logits = expected_logits(model, torch.tensor(ids)).double().log_softmax(-1)
    return -sum(logits[i - 1, ids[i]].item() for i in range(first, len(ids)))


def check_perplexity(build, folder, model, tokenizer, limit):
    lines = (SAMPLES / "eval_text.txt").read_text().splitlines()[:limit]
    sequences = [tokenizer(line)["input_ids"] for line in lines]
    tokens = sum(len(ids) - 1 for ids in sequences)
    expected = math.exp(sum(likelihood(model, ids, 1) for ids in sequences) / tokens)
    report = evaluate(build, folder, SAMPLES / "eval_text.txt", limit)
    found = report["text_perplexity"]
    counted = report["files"]["eval_text.txt"]["tokens"]
    print(f"{folder.name}: perplexity {found:.6f}, expected {expected:.6f}; {counted:.0f} of {tokens} tokens", flush=True)
    return counted == tokens and abs(found / expected - 1) <= MAX_PERPLEXITY


def check_answers(build, folder, model, tokenizer, limit):
    """Greedy answers: as many right as transformers', and every token that it generates is the native argmax after those before."""
    questions = [json.loads(line)["messages"] for line in (SAMPLES / "eval_textqa.jsonl").read_text().splitlines()[:limit]]
    right, nll, tokens, whole, starts = 0, 0.0, 0, [], []
    for messages in questions:
        answer = messages[-1]["content"][0]["text"]
        prompt = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, return_dict=True)["input_ids"]
        target = tokenizer(answer, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        nll += likelihood(model, prompt + target, len(prompt))
        tokens += len(target)
        with torch.no_grad():
            ids = model.generate(torch.tensor([prompt]), max_new_tokens=24, do_sample=False)[0]
        right += tokenizer.decode(ids[len(prompt):], skip_special_tokens=True).strip() == answer.strip()
        whole.append(ids)
        starts.append(len(prompt))
    logits = text_logits(build, folder, [ids[:-1] for ids in whole], "float32")
    same = sum(torch.equal(l[start - 1:].argmax(-1), ids[start:]) for l, ids, start in zip(logits, whole, starts))
    report = evaluate(build, folder, SAMPLES / "eval_textqa.jsonl", limit)
    exact, found = report["answers_exact"], report["answers_nll"]
    print(f"{folder.name}: {same} of {limit} answers equal; {exact * limit:.0f} right, expected {right}; "
          f"loss {found:.6f}, expected {nll / tokens:.6f}", flush=True)
    return same == limit and round(exact * limit) == right and abs(found - nll / tokens) <= MAX_PERPLEXITY


def check_trained(build, folder, limit):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    good = check_perplexity(build, folder, model, tokenizer, limit)
    good &= check_answers(build, folder, model, tokenizer, limit)
    lines = (SAMPLES / "eval_text.txt").read_text().splitlines()[:4]
    sequences = [torch.tensor(tokenizer(line)["input_ids"]) for line in lines]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    expected = [expected_logits(model, ids) for ids in sequences]
    return good & check(folder.name, expected, text_logits(build, folder, sequences, "bfloat16"), "bfloat16")
