"""What a DeepSpeed engine has learned, in whole tensors: the same for any number of processes and at each ZeRO stage.

An engine that shares its state among processes keeps it in slices of one long vector. A checkpoint holds each
parameter's part of it under the parameter's name, in its shape, as safetensors: any number of processes, at any stage,
takes it up, and reading it executes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.runtime.fp16.loss_scaler import LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils import safe_get_full_optimizer_state, safe_set_full_optimizer_state, safe_set_local_optimizer_state
from deepspeed.utils.tensor_fragment import fragment_address
from torch import Tensor

from cdrl.runs.archives import weights_only_unpickling

_STEP = "step"


def whole_optimizer_state(engine: Any) -> dict[str, Tensor]:
    """What the optimizer remembers of each parameter, under ``PARAMETER.KEY``; every process calls it.

    ``step``, the number of updates, is a single number; the moments have the parameter's shape. Before the first update
    there is nothing.
    """
    parameters = {name: parameter for name, parameter in engine.module.named_parameters() if parameter.requires_grad}
    if not engine.zero_optimization():
        states = {name: engine.optimizer.state.get(parameter, {}) for name, parameter in parameters.items()}
        return {f"{name}.{key}": value for name, state in states.items() for key, value in state.items()}
    state = engine.optimizer.optimizer.state.get(_slices(engine)[0], {})
    whole = {}
    for name, parameter in parameters.items():
        for key, value in state.items():
            gathered = value if key == _STEP else safe_get_full_optimizer_state(parameter, key)
            # Not left on the device: the networks whose state is shared are those that do not fit there.
            whole[f"{name}.{key}"] = gathered.to("cpu", copy=True)
    return whole


def take_up_optimizer_state(engine: Any, whole: Mapping[str, Tensor]) -> None:
    """Give an engine that has made no update what `whole_optimizer_state` returned; every process calls it.

    Raises:
        ValueError: it is of another network; the message names a parameter.
    """
    parameters = dict(engine.module.named_parameters())
    states: dict[str, dict[str, Tensor]] = {}
    for full_name, value in whole.items():
        name, _, key = full_name.rpartition(".")
        shape = getattr(parameters.get(name), "ds_shape", None) or getattr(parameters.get(name), "shape", None)
        if shape is None or (key != _STEP and value.shape != shape):
            raise ValueError(f"the optimizer's state is of another network: {full_name} {tuple(value.shape)}")
        states.setdefault(name, {})[key] = value
    if not engine.zero_optimization():
        for name, state in states.items():
            parameter = parameters[name]
            engine.optimizer.state[parameter] = {
                key: value.to(parameter.device) if key == _STEP else torch.empty_like(parameter).copy_(value).detach()
                for key, value in state.items()
            }
    elif states:
        _take_up_slices(engine, parameters, states)


def take_up_weights(engine: Any, weights: Mapping[str, Tensor]) -> None:
    """Give an engine's network weights and buffers, wherever they are spread; every process calls it.

    Raises:
        RuntimeError: they are of another network.
    """
    parameters = list(engine.module.parameters())
    spread = any(hasattr(parameter, "ds_id") for parameter in parameters)
    with _gathered(parameters if spread else []):
        engine.module.load_state_dict(weights)
    if engine.zero_optimization():
        engine.optimizer.refresh_fp32_params()


def _gathered(parameters: list[Tensor]) -> Any:
    return deepspeed.zero.GatheredParameters(parameters, modifier_rank=0, enabled=bool(parameters))


def _slices(engine: Any) -> list[Tensor]:
    """This process's slices of the long vectors of weights that its optimizer updates."""
    optimizer = engine.optimizer
    return optimizer.fp32_partitioned_groups_flat if _spreads(engine) else optimizer.single_partition_of_fp32_groups


def _spreads(engine: Any) -> bool:
    """Whether the weights themselves are spread over the processes: stage 3."""
    return engine.zero_optimization_partition_weights()


def _take_up_slices(engine: Any, parameters: Mapping[str, Any], states: Mapping[str, Mapping[str, Tensor]]) -> None:
    # An update is of all parameters that there are: where one has no gradient, its moments stay at 0.
    updates = max(state[_STEP] for state in states.values())
    moments = sorted({key for state in states.values() for key in state} - {_STEP})
    for weights in _slices(engine):
        engine.optimizer.optimizer.state[weights] = {
            _STEP: updates.clone().to(weights.device),
            **{key: torch.zeros_like(weights, requires_grad=False) for key in moments},
        }
    if not _spreads(engine):
        engine.optimizer._lazy_init_hp_params_optimizer_state()  # has each parameter know its part of a slice
    for name, state in states.items():
        parameter = parameters[name]
        for key in moments:
            value = state[key].to(parameter.device)
            if _spreads(engine):
                safe_set_local_optimizer_state(parameter, _own_slice(value, parameter.ds_tensor.numel()), key)
            else:
                safe_set_full_optimizer_state(parameter, value, key)


def _own_slice(value: Tensor, size: int) -> Tensor:
    """This process's ``size`` numbers of a tensor that is divided among all, filled up with zeros at its end."""
    missing = size * dist.get_world_size() - value.numel()
    return torch.nn.functional.pad(value.flatten(), (0, missing)).narrow(0, size * dist.get_rank(), size)


def take_up_slices_of_deepspeed(engine: Any, folder: Path, name: str) -> None:
    """Take up what DeepSpeed itself wrote, as checkpoints of earlier versions have it; every process calls it.

    Raises:
        ValueError: a file is missing, or it was written by another number of processes or at another ZeRO stage.
        Exception: whatever DeepSpeed raises over a damaged file.
    """
    written = len(list((folder / name).glob("*_optim_states.pt")))
    spread = any((folder / name).glob("zero_pp_rank_*_model_states.pt"))
    expected = dist.get_world_size() if engine.zero_optimization() else 0
    if (written, spread) != (expected, _spreads(engine)):
        # DeepSpeed would leave the optimizer's state out and go on.
        raise ValueError(
            f"it was written by an earlier version, which shared the optimizer's state as {written} slices: the number "
            "of processes and deepspeed.zero_stage must be those that it was written with"
        )
    plain = [LossScaler, ZeroStageEnum, fragment_address]
    with weights_only_unpickling(), torch.serialization.safe_globals(plain):
        found, _ = engine.load_checkpoint(str(folder), tag=name)
    if found is None:
        raise ValueError("its files are missing")
