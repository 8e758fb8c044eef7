"""Runs a test script if the Python modules it needs are there; otherwise says so and exits with 77 (skipped).

    python tests/with_modules.py MODULE... -- SCRIPT ARGUMENT...
"""
import importlib.util
import os
import sys


def main():
    separator = sys.argv.index("--")
    modules, command = sys.argv[1:separator], sys.argv[separator + 1 :]
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        print(f"skipped: {sys.executable} has no {', '.join(missing)}; ./test.sh installs tests/requirements.txt")
        return 77
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *command])


if __name__ == "__main__":
    sys.exit(main())
