"""The device's side of conformance in thirty lines, so that the exporter's tests need no other package.

Run as: PYTHON device_process.py conformance MODEL CASES.npz RESULTS.npz --runtime litert|tflite
"""

import argparse

import numpy as np


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("verb", "model", "cases", "results"):
        parser.add_argument(name)
    parser.add_argument("--runtime", choices=("litert", "tflite"), required=True)
    asked = parser.parse_args()
    if asked.runtime == "litert":
        from ai_edge_litert.interpreter import Interpreter
    else:
        from tflite_runtime.interpreter import Interpreter
    interpreter = Interpreter(asked.model, num_threads=1)
    results = {}
    with np.load(asked.cases, allow_pickle=False) as cases:
        for i in range(sum(key.endswith("/signature") for key in cases.files)):
            prefix = f"case/{i}/input/"
            inputs = {key[len(prefix) :]: cases[key] for key in cases.files if key.startswith(prefix)}
            outputs = interpreter.get_signature_runner(str(cases[f"case/{i}/signature"]))(**inputs)
            results |= {f"case/{i}/output/{name}": value for name, value in outputs.items()}
    np.savez(asked.results, **results)


if __name__ == "__main__":
    main()
