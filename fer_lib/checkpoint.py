"""Tensors on disk without pickle: a learner's whole state, or a model's weights, as safetensors."""

import json
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save_file
from torch import Tensor

from fer_lib.files import RecordError, write_atomically

STATE_FORMAT = 1        # raised when a checkpoint of an earlier version can't be taken up any more


class Background:
    """Writes checkpoints in a thread while training goes on, one after the other."""

    def __init__(self):
        self._pool = ThreadPoolExecutor(1, "checkpoint")
        self._last: Future | None = None

    @property
    def idle(self) -> bool:
        """Whether all is written: where each copy waits for this, one at a time is in memory."""
        return self._last is None or self._last.done()

    def submit(self, work: Callable, *args: object) -> Future:
        self._last = self._pool.submit(work, *args)
        return self._last

    def close(self) -> None:
        self._pool.shutdown()


def copied(state: dict) -> dict:
    """The state as it is now, in the CPU's memory: what comes after doesn't change it."""
    copy = _copied(state)
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()                        # copies from a GPU go on beside each other
    return copy


def _copied(value: object) -> object:
    if isinstance(value, Tensor) and value.device.type == "cuda":
        value = value.detach().contiguous()
        return torch.empty(value.shape, dtype=value.dtype, pin_memory=True).copy_(value, non_blocking=True)
    if isinstance(value, Tensor):
        return value.detach().clone(memory_format=torch.contiguous_format)
    if isinstance(value, dict):
        return {k: _copied(v) for k, v in value.items()}
    return type(value)(_copied(v) for v in value) if isinstance(value, list | tuple) else value


def write_state(path: Path, state: dict) -> None:
    """A nested dict of tensors, lists and plain values as one safetensors file: tensors by path, the rest as JSON."""
    tensors: dict[str, Tensor] = {}
    text = json.dumps(_lift(state, "", tensors))
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    write_atomically(path, lambda p: save_file(tensors, p, metadata={"state": text, "format": str(STATE_FORMAT)}))


def read_state(path: Path) -> dict:
    """What `write_state` wrote, tensors on the CPU: one state, also where the file is replaced in this moment. Raises
    RecordError where it is damaged or of another format.
    """
    try:
        content = path.read_bytes()                     # safetensors' own reader opens a file twice, by its name
        length = int.from_bytes(content[:8], "little")
        head = json.loads(content[8:8 + length])["__metadata__"]
        written = head.get("format", "1")               # the first versions wrote none
        if written != str(STATE_FORMAT):
            raise RecordError(f"'{path.parent.name}/{path.name}' is a checkpoint of format {written}, this version "
                              f"reads {STATE_FORMAT}: finish the run with the version of this kit that began it, "
                              "or delete the run's folder to train it anew")
        return _lower(json.loads(head["state"]), load(content))
    except (SafetensorError, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        raise RecordError(f"'{path.parent.name}/{path.name}' is damaged ({error}): delete that file to start the run "
                          "anew") from None


def _lift(value: object, path: str, tensors: dict[str, Tensor]) -> object:
    """JSON for `value`, its tensors moved to `tensors`. Dicts become [[key, value], ...]: keys keep their type."""
    if isinstance(value, Tensor):
        tensors[path] = value
        return {"tensor": path}
    if isinstance(value, dict):
        return {"dict": [[k, _lift(v, f"{path}/{k}", tensors)] for k, v in value.items()]}
    if isinstance(value, list | tuple):
        return {type(value).__name__: [_lift(v, f"{path}/{k}", tensors) for k, v in enumerate(value)]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a checkpoint holds tensors, lists and plain values, not {type(value).__name__} at '{path}'")


def _lower(value: object, tensors: dict[str, Tensor]) -> object:
    if not isinstance(value, dict):
        return value
    (kind, inner), = value.items()
    if kind == "tensor":
        return tensors[inner]
    if kind == "dict":
        return {k: _lower(v, tensors) for k, v in inner}
    return {"list": list, "tuple": tuple}[kind](_lower(v, tensors) for v in inner)


def write_weights(path: Path, weights: dict[str, Tensor]) -> None:
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in weights.items()}
    write_atomically(path, lambda p: save_file(tensors, p))


def read_weights(path: Path) -> dict[str, Tensor]:
    """A model's state by name. Raises RecordError where the file is missing or damaged."""
    try:
        with safe_open(path, framework="pt") as f:
            return {key: f.get_tensor(key) for key in f.keys()}
    except (SafetensorError, OSError) as error:
        raise RecordError(f"no readable weights in '{path.parent.name}/{path.name}' ({error})") from None


