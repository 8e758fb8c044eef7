#!/usr/bin/env python3
"""Loads quantized checkpoints with a client and scores token sequences.

    load_checkpoints.py transformers|vllm|gptqmodel SEQUENCES.json CHECKPOINT...

SEQUENCES.json: a list of lists of token ids. Prints a JSON line for each checkpoint: "best", the most likely token at every
position but the first, and "logprob", the log-probability of the token that stands there; or "error". The client is imported once
and forked for each checkpoint, so that a crash costs one line; but GPTQModel has threads from the start, which a fork would lose.
"""
import json
import os
import sys
import warnings
from pathlib import Path

os.environ.update(VLLM_CPU_KVCACHE_SPACE="1", VLLM_CPU_OMP_THREADS_BIND="nobind", OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", CUDA_VISIBLE_DEVICES="",
                  VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_NO_USAGE_STATS="1", DO_NOT_TRACK="1", VLLM_LOGGING_LEVEL="ERROR", TQDM_DISABLE="1",
                  GPTQMODEL_CPU_WORKERS="2", TOKENIZERS_PARALLELISM="false")  # fewer workers, and GPTQModel refuses to start
warnings.filterwarnings("ignore")


def score(model, sequences):
    """For models whose forward pass returns logits."""
    import torch
    best, logprob = [], []
    with torch.no_grad():
        for ids in sequences:
            tokens = torch.tensor([ids])
            scores = model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits[0, :-1].float().log_softmax(-1)
            best.append(scores.argmax(-1).tolist())
            logprob.append(scores.gather(1, tokens[0, 1:, None])[:, 0].tolist())
    return {"best": best, "logprob": logprob}


def quantize_activations_in_fp32():
    """compressed-tensors quantizes activations in the model's dtype: in bf16, codes of 8 bits move by one. Kernels of serving engines,
    and slim's forward pass, divide in fp32."""
    import torch
    from compressed_tensors.quantization.lifecycle import forward

    original = forward._process_quantization

    def process(*, x, scale, **options):
        if x.dtype != torch.bfloat16:
            return original(x=x, scale=scale, **options)
        return original(x=x.float(), scale=scale.float(), **options).to(x.dtype)

    forward._process_quantization = process


def use_transformers():
    import importlib.util

    import torch
    import transformers

    if importlib.util.find_spec("compressed_tensors"):
        quantize_activations_in_fp32()

    def run(folder, sequences):
        config = json.loads(Path(folder, "config.json").read_text())
        kind = getattr(transformers, config["architectures"][0])
        model, info = kind.from_pretrained(folder, dtype=torch.bfloat16, output_loading_info=True)
        wrong = {key: sorted(map(str, names))[:3] for key, names in info.items() if names}
        if wrong:
            raise ValueError(f"loaded with {wrong}")  # such weights would be random
        return score(model.eval(), sequences)

    return run


def use_gptqmodel():
    from gptqmodel import GPTQModel

    return lambda folder, sequences: score(GPTQModel.load(folder, device="cpu").model, sequences)


def use_vllm():
    from vllm import LLM, SamplingParams

    def run(folder, sequences):
        llm = LLM(model=folder, dtype="bfloat16", enforce_eager=True, max_model_len=512, max_num_seqs=8, max_num_batched_tokens=512, seed=0,
                  enable_prefix_caching=False, limit_mm_per_prompt={"image": 1, "video": 0})
        parameters = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=1, detokenize=False)
        outputs = llm.generate([{"prompt_token_ids": ids} for ids in sequences], parameters, use_tqdm=False)
        best, logprob = [], []
        for ids, output in zip(sequences, outputs, strict=True):
            positions = output.prompt_logprobs[1:]
            best.append([next(token for token, entry in position.items() if entry.rank == 1) for position in positions])
            logprob.append([position[token].logprob for token, position in zip(ids[1:], positions, strict=True)])
        return {"best": best, "logprob": logprob}

    return run


def reason_of(error):
    """The innermost cause, in one line."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def main():
    client, sequences, folders = sys.argv[1], json.loads(Path(sys.argv[2]).read_text()), sys.argv[3:]
    results = os.dup(1)
    os.dup2(2, 1)  # clients print to standard output
    run = {"transformers": use_transformers, "gptqmodel": use_gptqmodel, "vllm": use_vllm}[client]()

    def tell(folder, line):
        os.write(results, (json.dumps({"checkpoint": folder, **line}) + "\n").encode())

    def load(folder):
        try:
            tell(folder, run(folder, sequences))
        except BaseException as error:
            tell(folder, {"error": reason_of(error)})

    for folder in folders:
        if client == "gptqmodel":
            load(folder)
            continue
        child = os.fork()
        if child == 0:
            load(folder)
            os._exit(0)  # the client's threads would keep the process
        _, status = os.waitpid(child, 0)
        if status != 0:
            tell(folder, {"error": f"died with status {status}"})
    os._exit(0)


main()
