from __future__ import annotations

import io
import tarfile

from hypothesis import given
from hypothesis import strategies as st

from caesura.tars import Entry, of_bytes, tar_bytes, write_tar

NAMES = st.text("abc.ü", min_size=1, max_size=150).filter(lambda name: name.strip("."))


@given(st.dictionaries(NAMES, st.binary(max_size=1500), max_size=4))
def test_a_tar_holds_the_files_and_is_as_long_as_it_says(files: dict[str, bytes]) -> None:
    entries = [of_bytes(name, data) for name, data in files.items()]
    whole = b"".join(write_tar("folder", entries, 7))

    assert len(whole) == tar_bytes("folder", entries, 7)
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        read = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    assert read == {f"folder/{name}": data for name, data in files.items()}


def test_a_file_of_many_gigabytes_has_a_header_that_says_so() -> None:
    entry = Entry("large", 20 * 2**30, iter(()))
    header = next(write_tar("folder", [entry], 0))

    with tarfile.open(fileobj=io.BytesIO(header), mode="r|") as tar:
        assert tar.next().size == 20 * 2**30  # type: ignore[union-attr]
    assert tar_bytes("folder", [entry], 0) == len(header) + 20 * 2**30 + 1024
