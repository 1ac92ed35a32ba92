"""Let a release of DeepSpeed that knows only CUDA run on the CPU, without a change to DeepSpeed.

Before 0.14 a release wants a GPU, or Intel's extensions of torch. Here torch itself is told to
answer for CUDA with its CPU: a device "cuda" is the CPU, streams and events do nothing, and a
tensor's type has the name that it would have on a GPU, by which those releases sort gradients. What
is computed is what torch computes on the CPU, and gloo carries it. Times, memory, streams and the
fused operations of CUDA cannot be judged so. Needs nothing of dsmoe.
"""

import contextlib
import functools
import importlib.metadata
import importlib.util
from pathlib import Path

#: The first release whose engine runs on the CPU with gloo and torch alone.
FIRST_WITH_CPU = (0, 14)
#: Names in torch whose argument ``device`` may say CUDA.
_MAKERS = (
    ("arange", "empty", "empty_like", "eye", "full", "full_like", "linspace", "ones", "ones_like")
    + ("rand", "rand_like", "randint", "randn", "randn_like", "randperm", "tensor", "as_tensor")
    + ("zeros", "zeros_like")
)
_METHODS = ("new_empty", "new_full", "new_ones", "new_tensor", "new_zeros")
_TYPES = ("BFloat16", "Bool", "Byte", "Char", "Double", "Float", "Half", "Int", "Long", "Short")


def needed():
    """Whether the DeepSpeed that is installed here, not a checkout, is older than its CPU engine.

    It is found by its metadata, since the import may fail without a stand-in.
    """
    found = importlib.util.find_spec("deepspeed")
    if found is None or not found.origin:
        return False
    site = Path(found.origin).resolve().parent.parent
    for each in importlib.metadata.distributions(path=[str(site)]):
        if each.metadata["Name"] == "deepspeed":
            return tuple(int(part) for part in each.version.split(".")[:2]) < FIRST_WITH_CPU
    return False


def cpu(device):
    """``device`` as torch is to take it: the CPU where it says CUDA or the number of a GPU."""
    if isinstance(device, int) and not isinstance(device, bool):
        return "cpu"
    return "cpu" if str(device).startswith("cuda") else device


class Stream:
    """A stream or event of a device that works in order."""

    def __init__(self, *_, **__):
        pass

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *_, **__: 1.0 if name == "elapsed_time" else True


def install():
    """Change torch in this process; DeepSpeed is to be imported afterwards."""
    import torch

    _devices(torch)
    _tensors(torch)
    _cuda(torch)
    _gloo(torch)


def _with_device(call):
    @functools.wraps(call)
    def changed(*args, **options):
        if options.get("device") is not None:
            options["device"] = cpu(options["device"])
        return call(*args, **options)

    return changed


def _with_places(call):
    """For ``to``, whose place may be any argument by position."""

    @functools.wraps(call)
    def changed(self, *args, **options):
        if options.get("device") is not None:
            options["device"] = cpu(options["device"])
        places = (int, str, _Device.real)
        return call(self, *(cpu(a) if type(a) in places else a for a in args), **options)

    return changed


class _Kind(type):
    def __instancecheck__(cls, one):
        return type(one) is _Device.real


class _Device(metaclass=_Kind):
    """Stands for ``torch.device``; what it makes is a real one."""

    real = None

    def __new__(cls, place, index=None):
        place = cpu(place)
        return cls.real(place) if index is None or place == "cpu" else cls.real(place, index)


def _devices(torch):
    _Device.real = torch.device
    torch.device = _Device
    for name in _MAKERS:
        setattr(torch, name, _with_device(getattr(torch, name)))
    load = torch.load

    @functools.wraps(load)
    def loaded(file, map_location=None, *args, **options):
        place = map_location
        return load(
            file, place if callable(place) or place is None else cpu(place), *args, **options
        )

    torch.load = loaded


def _tensors(torch):
    tensor, module = torch.Tensor, torch.nn.Module
    for name in _METHODS:
        setattr(tensor, name, _with_device(getattr(tensor, name)))
    for kind in (tensor, module):
        kind.to = _with_places(kind.to)
        kind.cuda = lambda self, *_, **__: self
    tensor.pin_memory = lambda self, *_: self
    tensor.record_stream = lambda self, *_: None
    plain = tensor.type

    def named(self, *args, **options):
        if args or options:
            args = tuple(
                str(a).replace("torch.cuda.", "torch.") if isinstance(a, str) else a for a in args
            )
            return plain(self, *args, **options)
        return plain(self).replace("torch.", "torch.cuda.")

    tensor.type = named


def _cuda(torch):
    cuda = torch.cuda
    for kind in _TYPES:
        setattr(cuda, f"{kind}Tensor", getattr(torch, f"{kind}Tensor"))
    for name, value in {
        "is_available": True,
        "is_initialized": False,
        "is_bf16_supported": True,
        "device_count": 2,
        "current_device": 0,
        "get_device_capability": (7, 0),
        "get_device_name": "stand-in",
        "memory_stats": {},
    }.items():
        setattr(cuda, name, lambda *_, _value=value, **__: _value)
    for name in ("set_device", "synchronize", "empty_cache", "init", "ipc_collect"):
        setattr(cuda, name, lambda *_, **__: None)
    for name in dir(cuda):
        if name.startswith(("memory_", "max_memory_", "reset_")) and name != "memory_stats":
            setattr(cuda, name, lambda *_, **__: 0)
    cuda.Stream = cuda.Event = Stream
    for name in ("current_stream", "default_stream"):
        setattr(cuda, name, lambda *_, **__: Stream())
    for name in ("stream", "device"):
        setattr(cuda, name, lambda *_, **__: contextlib.nullcontext())
    cuda.get_rng_state = lambda *_: torch.get_rng_state()
    cuda.set_rng_state = lambda state, *_: torch.set_rng_state(state)
    cuda.nvtx.range_push = cuda.nvtx.range_pop = lambda *_: None


def _gloo(torch):
    """What gloo of an old torch lacks: bfloat16, which is sent as fp32, and one flat gather."""
    plain = torch.distributed.broadcast

    @functools.wraps(plain)
    def broadcast(tensor, *args, **options):
        if tensor.dtype is not torch.bfloat16:
            return plain(tensor, *args, **options)
        wide = tensor.detach().float()
        done = plain(wide, *args, **options)
        if done is not None:
            done.wait()
        tensor.detach().copy_(wide)
        return done

    def gather(output_tensor, input_tensor, group=None, async_op=False):
        parts = [
            torch.empty_like(input_tensor) for _ in range(torch.distributed.get_world_size(group))
        ]
        torch.distributed.all_gather(parts, input_tensor, group=group)
        output_tensor.detach().view(-1).copy_(torch.cat([part.view(-1) for part in parts]))
        return Stream() if async_op else None

    torch.distributed.broadcast = broadcast
    for name in ("_all_gather_base", "all_gather_into_tensor"):
        if hasattr(torch.distributed, name):
            setattr(torch.distributed, name, gather)


def allow_views():
    """Let torch 2.13 gather into the parts of a tensor, as earlier ones did.

    It refuses them because they are views of one ``split``; releases before 0.19 do that in ZeRO.
    """
    import torch

    plain = getattr(torch.distributed, "all_gather_into_tensor", None)
    if plain is None:
        return

    @functools.wraps(plain)
    def gather(output_tensor, input_tensor, *args, **options):
        return plain(output_tensor.detach(), input_tensor.detach(), *args, **options)

    torch.distributed.all_gather_into_tensor = gather


def allow_fp16():
    """Let DeepSpeed's CPU engine train in fp16, which it refuses where the processor is slow at it.

    Call it after DeepSpeed's import; a release without accelerators does not ask.
    """
    try:
        from deepspeed.accelerator import get_accelerator
    except ImportError:
        return
    get_accelerator().is_fp16_supported = lambda: True
