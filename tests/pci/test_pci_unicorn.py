"""The PCI bus in another emulator: x86 code, run by Unicorn, finds an entropy device and works it."""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from peers import need_peer

from virtio import GuestMemory
from virtio.device import Device
from virtio.pci import Bus, LegacyFunction

MEMORY = 1 << 20
CODE, RING, BUFFER, RESULT = 0x1000, 0x10000, 0x40000, 0x50000
TABLE = 0xFEB00000
LENGTH = 48

PROGRAM = f"""
.intel_syntax noprefix
.code32
.macro select offset            # slot in esi: CONFIG_ADDRESS
    lea eax, [esi + \\offset]
    mov dx, 0xcf8
    out dx, eax
    mov dx, 0xcfc
.endm
.macro put1 port, value
    mov dx, \\port
    mov al, \\value
    out dx, al
.endm
.macro put2 port, value
    mov dx, \\port
    mov ax, \\value
    out dx, ax
.endm
.macro put4 port, value
    mov dx, \\port
    mov eax, \\value
    out dx, eax
.endm
    mov esi, 0x80000000
1:  select 0                    # each slot in turn
    in eax, dx
    cmp eax, 0x10051af4
    je 2f
    add esi, 1 << 11
    cmp esi, 0x80010000
    jb 1b
    hlt
2:  select 0x10
    mov eax, 0xc000
    out dx, eax
    select 0x14
    mov eax, {TABLE:#x}
    out dx, eax
    select 4
    mov ax, 7
    out dx, ax
    put1 0xc012, 0
    put1 0xc012, 1
    put1 0xc012, 3
    mov dx, 0xc000              # no feature
    in eax, dx
    put4 0xc004, 0
    put2 0xc00e, 0
    mov dx, 0xc00c
    in ax, dx
    movzx ecx, ax               # queue size
    put4 0xc008, {RING >> 12:#x}
.if MSIX
    select 0x40                 # message control is the upper half of the capability's first word
    add dx, 2
    mov ax, 0x8000
    out dx, ax
    mov dword ptr [{TABLE:#x}], 0xfee01000
    mov dword ptr [{TABLE + 4:#x}], 0
    mov dword ptr [{TABLE + 8:#x}], 0x4321
    mov dword ptr [{TABLE + 12:#x}], 0
    put2 0xc016, 0
.endif
    put1 0xc012, 7
    mov edi, {RING:#x}
    mov dword ptr [edi], {BUFFER:#x}
    mov dword ptr [edi + 8], {LENGTH}
    mov word ptr [edi + 12], 2
    mov ebx, ecx
    shl ebx, 4
    add ebx, edi                # available ring
    mov word ptr [ebx + 4], 0
    mov word ptr [ebx + 2], 1
    lea ebp, [ebx + ecx * 2 + 6 + 4095]
    and ebp, ~4095              # used ring
    put2 0xc010, 0
3:  cmp word ptr [ebp + 2], 1
    jne 3b
    mov eax, [ebp + 8]
    mov [{RESULT:#x}], eax      # bytes that were written
    mov dx, 0xc013
    in al, dx
    movzx eax, al
    mov [{RESULT + 4:#x}], eax  # ISR status
    hlt
"""


class Entropy(Device):
    device_type = 4

    def notified(self, index: int) -> None:
        for chain in self.chains(index):
            chain.write(os.urandom(chain.writable_length))


def assemble(folder: Path, msix: bool) -> bytes:
    source, unlinked, binary = folder / "guest.s", folder / "guest.o", folder / "guest.bin"
    source.write_text(PROGRAM)
    arguments = ["--32", "--defsym", f"MSIX={msix:d}", "-o", str(unlinked), str(source)]
    subprocess.run([need_peer("as", "binutils"), *arguments], check=True, timeout=60)
    arguments = ["-O", "binary", "-j", ".text", str(unlinked), str(binary)]
    subprocess.run([need_peer("objcopy", "binutils"), *arguments], check=True, timeout=60)
    return binary.read_bytes()


@pytest.mark.parametrize("msix", [False, True], ids=["intx", "msix"])
def test_a_guest_in_unicorn(tmp_path, msix):
    pytest.importorskip("unicorn", reason="pip install unicorn")
    from unicorn import UC_ARCH_X86, UC_HOOK_INSN, UC_MODE_32, UC_PROT_ALL, Uc
    from unicorn.x86_const import UC_X86_INS_IN, UC_X86_INS_OUT

    buffer = mmap.mmap(-1, MEMORY)
    memory = GuestMemory([(0, buffer)])
    machine: Any = Uc(UC_ARCH_X86, UC_MODE_32)
    machine.mem_map_ptr(0, MEMORY, UC_PROT_ALL, ctypes.addressof(ctypes.c_char.from_buffer(buffer)))
    levels: list[tuple[int, bool]] = []
    messages: list[tuple[int, int]] = []

    bus = Bus(intx=lambda line, level: levels.append((line, level)))
    bus.add(LegacyFunction(Entropy(), memory, message=lambda address, data: messages.append((address, data))), 5)
    machine.hook_add(UC_HOOK_INSN, lambda uc, port, size, _: bus.io_read(port, size), None, 1, 0, UC_X86_INS_IN)
    machine.hook_add(
        UC_HOOK_INSN, lambda uc, port, size, value, _: bus.io_write(port, size, value), None, 1, 0, UC_X86_INS_OUT
    )
    machine.mmio_map(
        *(TABLE, 4096),
        *(lambda uc, offset, size, _: bus.mem_read(TABLE + offset, size), None),
        *(lambda uc, offset, size, value, _: bus.mem_write(TABLE + offset, size, value), None),
    )

    program = assemble(tmp_path, msix)
    memory.write(CODE, program)
    machine.emu_start(CODE, CODE + len(program), timeout=30_000_000)
    assert memory.read_u32(RESULT) == LENGTH
    assert memory.read(BUFFER, LENGTH) != bytes(LENGTH) and memory.read(BUFFER + LENGTH, 16) == bytes(16)
    assert memory.read_u32(RESULT + 4) == 1  # the ISR status, which is set with MSI-X, too
    assert messages == ([(0xFEE01000, 0x4321)] if msix else [])
    assert levels == ([] if msix else [(1, True), (1, False)])
