# SPDX-License-Identifier: Apache-2.0
"""Quantizes a checkpoint from Python, through the C interface and ctypes: embed.py PREFIX MODEL CALIB OUTPUT

PREFIX is where slim is installed. Python's own torch must not be imported in the same process: it would be a second LibTorch.
"""
import ctypes
import json
import pathlib
import sys


class Error(ctypes.Structure):  # slim_error
    _fields_ = [("code", ctypes.c_int32), ("message", ctypes.c_char * 1020)]


class Progress(ctypes.Structure):  # slim_progress
    _fields_ = [("struct_size", ctypes.c_uint32), ("phase", ctypes.c_char_p), ("step", ctypes.c_char_p),
                ("warning", ctypes.c_char_p), ("done", ctypes.c_int64), ("steps", ctypes.c_int64)]


Callback = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.POINTER(Progress), ctypes.c_void_p)


def load(prefix):
    library = ctypes.CDLL(str(next(pathlib.Path(prefix).glob("lib*/**/libslim_sdk.so"))))
    library.slim_session_open.restype = ctypes.c_void_p
    library.slim_session_open.argtypes = [ctypes.c_char_p, ctypes.POINTER(ctypes.c_char_p), ctypes.c_size_t, ctypes.POINTER(Error)]
    library.slim_session_run.argtypes = [ctypes.c_void_p, Callback, ctypes.c_void_p, ctypes.POINTER(Error)]
    library.slim_session_json.restype = ctypes.c_char_p
    library.slim_session_json.argtypes = [ctypes.c_void_p]
    library.slim_session_close.argtypes = [ctypes.c_void_p]
    return library


@Callback
def show(progress, _user):
    state = progress.contents
    if state.step:
        print(f"{state.phase.decode()} {state.done}/{state.steps} {state.step.decode()}")
    return 0  # anything else stops the run


def quantize(library, **settings):
    """The report as a dictionary."""
    texts = [f"{key.replace('__', '.')}={value}".encode() for key, value in settings.items()]
    error = Error()
    session = library.slim_session_open(None, (ctypes.c_char_p * len(texts))(*texts), len(texts), error)
    if not session:
        raise RuntimeError(error.message.decode())
    try:
        if library.slim_session_run(session, show, None, error) != 0:
            raise RuntimeError(error.message.decode())
        return json.loads(library.slim_session_json(session))
    finally:
        library.slim_session_close(session)


def main():
    if len(sys.argv) != 5:
        sys.exit(f"usage: {sys.argv[0]} PREFIX MODEL CALIB OUTPUT")
    prefix, model, calib, output = sys.argv[1:]
    report = quantize(load(prefix), compression__plugin="awq", compression__quantization__name="w4a16",
                      compression__quantization__group_size=64, model__path=model, dataset__path=calib, output__path=output)
    print(f"{output}: {report['seconds']:.1f} s")


if __name__ == "__main__":
    main()
