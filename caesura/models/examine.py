"""What a server that does not import torch wants to know of a base: `python -m caesura.models.examine`."""

# pyright: reportUnknownMemberType=false
from __future__ import annotations

import json

import torch

from caesura.errors import CaesuraError
from caesura.models.loading import list_layers
from caesura.programs import read_request, take_output
from caesura.settings import BaseModelSettings


def main() -> None:
    request = read_request()
    output = take_output()
    try:
        layers = list_layers(request["name"], BaseModelSettings(path=request["path"]))
    except CaesuraError:  # logged there; the job is told of it when it starts
        layers = None
    output.write(json.dumps({"has_gpu": torch.cuda.is_available(), "layers": layers}).encode())
    output.flush()


if __name__ == "__main__":
    main()
