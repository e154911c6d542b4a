"""torch.compile for the part of a training step from the images to the loss: fewer, larger kernels.

A compiled step rounds differently, as another device does; AutoReLU's own kernels are taken as they are. Compiling
takes about 40 s for each new combination of network, method and batch, and is kept for all runs of the process. So it
pays for long runs, and `auto` compiles those alone.
"""

import functools
import warnings
from collections.abc import Callable

import torch

from fer_lib.experiment import Experiment, ParameterError
from fer_lib.methods import draws_in_forward

GAIN_SECONDS = 600.             # auto: a run that takes this long without
IMAGES_PER_SECOND = 38_000.     # of one run of recorded steps, ResNet-18 at 48 px: NVIDIA H100, bf16


def compiles(e: Experiment, steps: int, image: tuple[int, int, int], device: torch.device) -> bool:
    """Whether the run's step is compiled: never on a CPU, with deterministic kernels, or where the method draws within
    the forward pass (torch.compile knows the global random stream only; around a call that it leaves out, convolutions'
    gradients get another memory layout than the compiled code expects: torch 2.11).
    """
    if device.type != "cuda" or e.deterministic or e.compile_step == "off" or draws_in_forward(e.method):
        return False
    seconds = steps * e.batch_size * image[1] * image[2] / 48 ** 2 / IMAGES_PER_SECOND
    return e.compile_step == "on" or seconds > GAIN_SECONDS


def check_compile(e: Experiment) -> None:
    """Raise ParameterError where compilation is asked for and can't be."""
    if e.compile_step == "on" and e.deterministic:
        raise ParameterError("compile_step 'on' and deterministic exclude each other: compiled kernels "
                             "promise no order of additions; use compile_step off")
    if e.compile_step == "on" and draws_in_forward(e.method):
        raise ParameterError(f"compile_step 'on' can't be had with method '{e.method}', which draws random numbers of "
                             "its own in the forward pass; use compile_step auto or off")


@functools.cache
def compiled(work: Callable) -> Callable:
    """`work`, compiled when it is first called, its backward pass too: what the compiler says or fails at comes there.
    Small kernels that don't depend on each other become one.
    """
    torch._dynamo.config.recompile_limit = 256          # each method's pieces are compiled for each size of feature map
    torch._functorch.config.force_non_lazy_backward_lowering = True
    fast = torch.compile(work, dynamic=False, options={"combo_kernels": True, "benchmark_combo_kernel": False})

    @functools.wraps(work)
    def quiet(*args):
        with warnings.catch_warnings():                 # advice about the compiler's own choices
            warnings.filterwarnings("ignore", category=UserWarning, module=r"torch\.")
            return fast(*args)

    return quiet


def is_compiler_error(error: Exception) -> bool:
    """Whether it is the compiler that failed, and not what it compiled."""
    return isinstance(error, torch._dynamo.exc.TorchDynamoException)
