"""What a training changes of its model: an adapter beside the base, or the base's own weights."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from caesura.models.full import FullWeights, get_weights, merge, set_weights
from caesura.models.lora import (
    Adapter,
    Layers,
    dropping,
    find_linears,
    fresh_adapter,
    get_adapter,
    set_adapter,
    set_frozen,
)
from caesura.models.targets import match_targets
from caesura.models.tuned import Tuned
from caesura.training.plan import Plan
from caesura.training.state import State


class Trained(Protocol):
    """Stands between the trainer, which knows parameters by name, and the model that computes with them."""

    def fresh_state(self, seed: int, start: Tuned | None = None) -> State:
        """The training state that a new job starts from, a function of the seed and of the tuned model `start`."""
        ...

    def load(self, state: State) -> dict[str, nn.Parameter]:
        """Have the model compute with the weights of `state`. Returns what the optimizer changes, fp32, by name.

        Raises BlobDamaged when they do not fit the model.
        """
        ...

    def drawing(self, seed: int) -> AbstractContextManager[None]:
        """The context in which gradients are made; what chance there is in it is a function of `seed`."""
        ...

    def updated(self) -> None:
        """The optimizer has changed the parameters: have the model compute with them."""
        ...

    def get(self) -> Tuned:
        """What is trained, as it is now. Tensors may share the parameters' memory."""
        ...


class TrainedAdapter:
    """An adapter on the layers that the plan names, and perhaps one of before, which stays as it is."""

    def __init__(self, layers: Layers, plan: Plan) -> None:
        self.layers = layers
        self._plan = plan

    def fresh_state(self, seed: int, start: Tuned | None = None) -> State:
        assert not isinstance(start, FullWeights)
        plan = self._plan
        if start is not None and not plan.frozen_rank:
            return State(0, start, {})
        chosen = {name: self.layers[name] for name in match_targets(self.layers, plan.target_modules)}
        return State(0, fresh_adapter(chosen, plan.lora_rank, plan.lora_alpha, seed), {}, frozen=start)

    def load(self, state: State) -> dict[str, nn.Parameter]:
        assert isinstance(state.adapter, Adapter)
        set_frozen(self.layers, state.frozen)
        set_adapter(self.layers, state.adapter)
        parameters: dict[str, nn.Parameter] = {}
        for name, layer in self.layers.items():
            if layer.lora_A is not None and layer.lora_B is not None:
                parameters |= {f"{name}.lora_A": layer.lora_A, f"{name}.lora_B": layer.lora_B}
        return parameters

    def drawing(self, seed: int) -> AbstractContextManager[None]:
        return dropping(self.layers, self._plan.lora_dropout, seed)

    def updated(self) -> None:
        pass  # the layers compute with the parameters themselves

    def get(self) -> Tuned:
        plan = self._plan
        return get_adapter(self.layers, plan.lora_rank, plan.lora_alpha, plan.lora_dropout)


class TrainedModel:
    """All weights of the base.

    Where the model holds one in another dtype than fp32, the optimizer changes an fp32 copy of it: most of a step's
    changes are smaller than what bfloat16 can tell of the weights that they are added to. `load_exact` gives the base
    with the weights that its files have, for the training to begin with.
    """

    def __init__(self, model: nn.Module, load_exact: Callable[[], nn.Module]) -> None:
        self._model = model
        self._load_exact = load_exact
        self._parameters: dict[str, nn.Parameter] = {}
        self._hooks: list[RemovableHandle] = []

    def fresh_state(self, seed: int, start: Tuned | None = None) -> State:
        if isinstance(start, FullWeights):
            return State(0, start, {})
        weights = get_weights(self._load_exact())
        return State(0, weights if start is None else merge(weights, start, find_linears(self._model)), {})

    def load(self, state: State) -> dict[str, nn.Parameter]:
        assert isinstance(state.adapter, FullWeights)
        set_weights(self._model, state.adapter)
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        for name, held in self._model.named_parameters():
            held.requires_grad_()
            self._parameters[name] = held
            if held.dtype != torch.float32:
                weight = state.adapter.weights[name]
                self._parameters[name] = nn.Parameter(weight.to(held.device, torch.float32, copy=True))
                self._hooks.append(held.register_post_accumulate_grad_hook(_hand_over_to(self._parameters[name])))
        return self._parameters

    def drawing(self, seed: int) -> AbstractContextManager[None]:
        return nullcontext()

    @torch.no_grad()
    def updated(self) -> None:
        for name, held in self._model.named_parameters():
            if held is not self._parameters[name]:
                held.copy_(self._parameters[name])

    def get(self) -> Tuned:
        return FullWeights({name: parameter.detach() for name, parameter in self._parameters.items()})


def _hand_over_to(parameter: nn.Parameter) -> Callable[[Tensor], None]:
    """Gradients are summed in fp32, and the model's own are gone as soon as they are."""

    def hand_over(held: Tensor) -> None:
        assert held.grad is not None
        gradient = held.grad.to(parameter.dtype)
        parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
        held.grad = None

    return hand_over
