"""Linear layers that multiply in 8 bits, through torchao: `precision: fp8`.

Weights, gradients and the optimizer's state stay as they are; inputs, weights and gradients of an output are scaled to
8 bits for the product alone, each by its largest number at that moment. So names, checkpoints and exports are those of
the model without it. The head, and layers whose sizes the kernels do not take, stay in bf16 and are counted.

Method: Micikevicius et al. 2022, "FP8 Formats for Deep Learning".
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable

import torch
from torch import nn

from automodel_cli.errors import ConfigError

LEAST_CAPABILITY = (8, 9)
_MULTIPLE = 16  # The kernels need both sizes of a matrix to be multiples of this.


def check_float8(device: torch.device) -> None:
    """Refuses a machine that has no products in 8 bits.

    Raises:
        ConfigError: torchao is not installed, or the device is no GPU from Ada or Hopper on.
    """
    works = "precision: bf16 works on GPUs from Ampere on"
    if device.type != "cuda":
        raise ConfigError("precision is `fp8`, but only GPUs have it", help=works)
    capability = torch.cuda.get_device_capability(device)
    if capability < LEAST_CAPABILITY:
        found, least = (".".join(map(str, numbers)) for numbers in (capability, LEAST_CAPABILITY))
        raise ConfigError(
            f"precision is `fp8`, but this GPU has compute capability {found} and it needs {least} (Ada, Hopper)",
            help=works,
        )
    if importlib.util.find_spec("torchao") is None:
        raise ConfigError("precision is `fp8`, which needs torchao", help="pip install 'amcli[fp8]'")


def use_float8(model: nn.Module, is_head: Callable[[nn.Module], bool], *, emulate: bool = False) -> str:
    """Makes the linear layers of a model multiply in 8 bits, in place; returns which, in words.

    Args:
        model: Its parameters stay the same objects under the same names.
        is_head: Whether a module is the head, which is not converted.
        emulate: Round as the kernels do, and multiply in the wide type, for devices without such kernels.

    Raises:
        ConfigError: No layer can.
    """
    # Imported here: it takes seconds, which only a run that uses it spends.
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    head = {id(module) for module in model.modules() if is_head(module)}
    chosen = {id(module) for module in model.modules() if _fits(module) and id(module) not in head}
    num_linear = sum(isinstance(module, nn.Linear) for module in model.modules())
    if not chosen:
        raise ConfigError(
            f"precision is `fp8`, but {type(model).__name__} has no linear layer beside its head with both sizes "
            f"multiples of {_MULTIPLE}",
            help="precision: bf16 works with every model",
        )
    convert_to_float8_training(
        model,
        module_filter_fn=lambda module, _name: id(module) in chosen,
        config=dataclasses.replace(Float8LinearConfig(), emulate=emulate),
    )
    kept = num_linear - len(chosen)
    return f"{len(chosen)} linear layers" + (f"; {kept} stay in bf16, the head among them" if kept else "")


def _fits(module: nn.Module) -> bool:
    return type(module) is nn.Linear and not (module.in_features % _MULTIPLE or module.out_features % _MULTIPLE)
