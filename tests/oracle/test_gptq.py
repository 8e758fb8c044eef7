"""GPTQ's codes must be those of the published formulas at the same scales, and decode as the formats say.

    python tests/oracle/test_gptq.py --build BUILD_DIR

The formulas are written out here in numpy, fp32, as llm-compressor 0.14 applies them (inverse by two Cholesky factorizations, blocks of
128 columns); tests/bench/peer_gptq.py compares with llm-compressor itself. Quotients that lie within rounding of a tie may fall to the
other side and move what follows: 99.5 % of the codes must be equal.
"""
import argparse
import os
import subprocess
import tempfile

import numpy as np
from safetensors.numpy import load_file, save_file

PLAIN = {"range": "minmax", "refit": "false", "act_group_aware": "false"}
CASES = [("w4a16", 128, 96, 512, {}), ("w4a16", 32, 40, 320, {}), ("w4a16_asym", 64, 48, 256, {}), ("w3a16", 128, 33, 384, {}),
         ("w2a16_asym", 32, 24, 160, {}), ("w8a16", -1, 20, 200, {}), ("w4a16", 64, 64, 256, {"desc_act": "true"})]


def layer(rows, columns, seed):
    """A weight, and inputs whose channels depend on each other and differ in size."""
    random = np.random.default_rng(seed)
    mixing = random.standard_normal((columns, columns)) / np.sqrt(columns)
    size = np.exp(random.standard_normal(columns))
    x = (0.3 * random.standard_normal((4 * columns, columns)) + random.standard_normal((4 * columns, columns)) @ mixing) * size
    return {"weight": random.standard_normal((rows, columns)).astype(np.float32), "x": x.astype(np.float32)}


def solve(build, scheme, group, tensors, options, folder):
    os.makedirs(f"{folder}/in")
    save_file(tensors, f"{folder}/in/model.safetensors")
    with open(f"{folder}/in/config.json", "w") as file:
        file.write("{}")
    command = [f"{build}/bin/slim_solve", "gptq", scheme, str(group), f"{folder}/in", f"{folder}/out"]
    subprocess.run(command + [f"{key}={value}" for key, value in options.items()], check=True)
    return load_file(f"{folder}/out/model.safetensors")


def reference_codes(weight, x, scale, zero, group, bits, by_activation):
    """scale, zero [rows, groups]; codes in the stored order of columns."""
    columns = weight.shape[1]
    weight, hessian = weight.copy(), (x.T @ x / len(x)).astype(np.float32)
    order = np.argsort(-hessian.diagonal(), kind="stable") if by_activation else np.arange(columns)
    weight, hessian = weight[:, order], hessian[np.ix_(order, order)]
    hessian[np.diag_indices(columns)] += np.float32(0.01) * hessian.diagonal().mean()
    inverse = np.linalg.inv(hessian)
    upper = np.linalg.cholesky((inverse + inverse.T) / 2).T.astype(np.float32)
    codes = np.zeros(weight.shape, np.int8)
    for first in range(0, columns, 128):
        last = min(first + 128, columns)
        errors = np.zeros((len(weight), last - first), np.float32)
        for column in range(first, last):
            s, z = scale[:, order[column] // group], zero[:, order[column] // group]
            code = np.clip(np.rint(weight[:, column] / s + z), -2 ** (bits - 1), 2 ** (bits - 1) - 1)
            codes[:, order[column]] = code
            error = (weight[:, column] - (code - z) * s) / upper[column, column]
            weight[:, column + 1:last] -= np.outer(error, upper[column, column + 1:last])
            errors[:, column - first] = error
        weight[:, last:] -= errors @ upper[first:last, last:]
    return codes


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", required=True)
    build = parser.parse_args().build
    for seed, (scheme, group, rows, columns, options) in enumerate(CASES):
        tensors = layer(rows, columns, seed)
        with tempfile.TemporaryDirectory() as folder:
            result = solve(build, scheme, group, tensors, PLAIN | options, folder)
        group, bits = columns if group < 0 else group, int(scheme[1])
        scale, zero = result["scale"], result.get("zero", np.zeros_like(result["scale"], np.int8)).astype(np.float32)
        by_column = np.repeat(np.arange(columns // group), group)
        decoded = (result["codes"].astype(np.float32) - zero[:, by_column]) * scale[:, by_column]
        assert np.array_equal(decoded, result["decoded"]), f"{scheme}: codes do not decode to what the solver says"
        expected = reference_codes(tensors["weight"], tensors["x"], scale, zero, group, bits, "desc_act" in options)
        equal = (expected == result["codes"]).mean()
        print(f"{scheme} group {group}, {rows} x {columns} {options}: {equal:.3%} of the codes are equal")
        assert equal >= 0.995, scheme
    with tempfile.TemporaryDirectory() as folder:
        result = solve(build, "w4a16", 32, layer(16, 128, 99), PLAIN | {"desc_act": "true", "static_groups": "false"}, folder)
    decoded = result["codes"] * result["scale"][:, result["group_index"]]
    assert np.array_equal(decoded.astype(np.float32), result["decoded"]), "group_index does not name each channel's scale"


if __name__ == "__main__":
    main()
