"""A machine for the classic BPF programs of seccomp: as much of it as the filter uses."""

from __future__ import annotations

import struct

from caesura.graders.sandbox.jail.bpf import AND, JUMP_AT_LEAST, JUMP_EQUAL, LOAD, RETURN, Block

#: The kernel refuses longer programs (BPF_MAXINSNS).
MAX_INSTRUCTIONS = 4096


def verdict(block: Block, audit: int, number: int, *arguments: int) -> int:
    """What the filter returns for a call. Fails on what the kernel's own check would refuse."""
    assert 0 < len(block) <= MAX_INSTRUCTIONS
    padded = [*arguments, 0, 0, 0, 0, 0, 0][:6]
    data = struct.pack("=IIQ6Q", number, audit, 0x7F00_0000_0000, *(value % 2**64 for value in padded))
    accumulator, position = 0, 0
    while True:
        code, if_true, if_false, operand = block[position]
        assert 0 <= if_true <= 255
        assert 0 <= if_false <= 255
        position += 1
        if code == RETURN:
            return operand
        if code == LOAD:
            assert operand % 4 == 0
            accumulator = struct.unpack_from("=I", data, operand)[0]
        elif code == AND:
            accumulator &= operand
        elif code in (JUMP_EQUAL, JUMP_AT_LEAST):
            is_true = accumulator == operand if code == JUMP_EQUAL else accumulator >= operand
            position += if_true if is_true else if_false
        else:
            raise AssertionError(f"unknown code {code:#x}")
