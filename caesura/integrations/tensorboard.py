"""TensorBoard: event files in a folder of the run's own, by the library's own writer."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from tensorboard.compat.proto import event_pb2, summary_pb2, tensor_pb2, types_pb2
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from caesura.integrations.runs import Point, RunSpec, RunUnavailable, Told, config_of
from caesura.integrations.shipping import main
from caesura.jobs import Status

# Their classes are made when they are imported: there are no types for them.
_events: Any = event_pb2
_summaries: Any = summary_pb2
_tensors: Any = tensor_pb2
_types: Any = types_pb2


class TensorboardRun:
    """A file for each opening. TensorBoard leaves out what older files have from the first step of a newer one on."""

    def __init__(self, writer: Any, step: int) -> None:
        self._writer = writer
        self._step = step

    def log(self, points: Sequence[Point]) -> None:
        for point in points:
            values = [_summaries.Summary.Value(tag=name, simple_value=value) for name, value in point.values.items()]
            self._add(_events.Event(wall_time=point.at, step=point.step, summary=_summaries.Summary(value=values)))
            self._step = point.step
        self._flush()

    def last_step(self) -> int:
        return self._step

    def describe(self, summary: Mapping[str, Told]) -> None:
        self._add(to_text("summary", summary, self._step))
        self._flush()

    def close(self, status: Status) -> None:
        self._writer.close()

    def _add(self, event: Any) -> None:
        self._writer.add_event(event)

    def _flush(self) -> None:
        try:
            self._writer.flush()
        except OSError as error:
            raise RunUnavailable("its folder cannot be written to") from error


def to_text(name: str, values: Mapping[str, Any], step: int) -> Any:
    """An event that TensorBoard shows under TEXT."""
    metadata = _summaries.SummaryMetadata(plugin_data=_summaries.SummaryMetadata.PluginData(plugin_name="text"))
    text = "```\n" + json.dumps(values, indent=2, ensure_ascii=False) + "\n```"
    tensor = _tensors.TensorProto(dtype=_types.DT_STRING, string_val=[text.encode()])
    value = _summaries.Summary.Value(tag=name, metadata=metadata, tensor=tensor)
    return _events.Event(wall_time=time.time(), step=step, summary=_summaries.Summary(value=[value]))


def open_run(spec: RunSpec) -> TensorboardRun:
    folder = spec.settings.tensorboard_dir or spec.settings.data_dir / "tensorboard"
    try:
        writer: Any = EventFileWriter(str(folder / spec.job.id))
    except OSError as error:
        raise RunUnavailable("its folder cannot be written to") from error
    run = TensorboardRun(writer, spec.step)
    start = _events.SessionLog(status=_events.SessionLog.START)
    writer.add_event(_events.Event(wall_time=time.time(), step=spec.step + 1, session_log=start))
    writer.add_event(to_text("config", config_of(spec.job), spec.step + 1))
    return run


if __name__ == "__main__":
    main(open_run)
