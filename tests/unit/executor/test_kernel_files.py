"""A session's files, its memory full or not, with real processes and no isolation. Jails: tests/sandbox."""

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from cellar_executor.kernel import KernelFileError, KernelUnavailable
from cellar_executor.kernels import jailed_kernel
from cellar_executor.kernels.jailed_kernel import JailedKernel
from cellar_executor.kernels.kernel_files import DRAFT
from cellar_executor.kernels.protocol import FILE_CHUNK_BYTES
from tests.unit.executor.local_kernel import result, run


async def test_a_file_comes_out_as_it_went_in(kernel: JailedKernel) -> None:
    for size in (0, 1, FILE_CHUNK_BYTES, FILE_CHUNK_BYTES + 1, 3 * FILE_CHUNK_BYTES):
        data = os.urandom(size)
        await kernel.put_file("folder/a file.bin", data)
        assert await kernel.get_file("folder/a file.bin", max_bytes=size) == data
    assert await result(kernel, "import os; os.path.getsize('folder/a file.bin')") == str(3 * FILE_CHUNK_BYTES)


TWO_PIECES = b"new" * (FILE_CHUNK_BYTES // 2)


@pytest.mark.parametrize("limit", [FILE_CHUNK_BYTES // 2, FILE_CHUNK_BYTES + 1], ids=["first piece", "second piece"])
async def test_a_file_that_does_not_fit_leaves_the_old_one_and_no_draft(
    kernel: JailedKernel, tmp_path: Path, limit: int
) -> None:
    await kernel.put_file("d/f", b"old")
    await run(kernel, f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))")
    with pytest.raises(KernelFileError, match="too large"):
        await kernel.put_file("d/f", TWO_PIECES)
    assert await kernel.get_file("d/f", max_bytes=10) == b"old"
    assert os.listdir(tmp_path) == ["d"]


async def test_a_path_refused_between_two_pieces_leaves_no_draft(kernel: JailedKernel, tmp_path: Path) -> None:
    ask = kernel._ask

    async def interfere(*args: Any, **arguments: Any) -> Any:
        reply = await ask(*args, **arguments)
        (tmp_path / "f").mkdir(exist_ok=True)
        return reply

    kernel._ask = interfere  # type: ignore[method-assign]
    with pytest.raises(KernelFileError, match="regular"):
        await kernel.put_file("f", TWO_PIECES)
    assert os.listdir(tmp_path) == ["f"]


async def test_the_draft_of_a_killed_copy_is_not_listed_and_gone_with_the_next_put(
    kernel: JailedKernel, tmp_path: Path
) -> None:
    copy = await kernel.fork()
    ask = copy._ask

    async def stall(*args: Any, **arguments: Any) -> Any:
        if arguments["offset"]:
            copy.kill()
        return await ask(*args, **arguments)

    copy._ask = stall  # type: ignore[method-assign]
    with pytest.raises(KernelUnavailable):
        await copy.put_file("f", TWO_PIECES)
    await copy.close()
    assert os.listdir(tmp_path) != []
    assert await kernel.list_files(max_files=9) == ([], False)
    await kernel.put_file("f", TWO_PIECES)
    assert os.listdir(tmp_path) == ["f"]


async def test_a_copys_unfinished_draft_is_left_to_it(kernel: JailedKernel, tmp_path: Path) -> None:
    copy = await kernel.fork()
    ask = copy._ask

    async def meanwhile(*args: Any, **arguments: Any) -> Any:
        await kernel.put_file("f", b"of the origin")
        return await ask(*args, **arguments)

    copy._ask = meanwhile  # type: ignore[method-assign]
    await copy.put_file("f", TWO_PIECES)
    assert (tmp_path / "f").read_bytes() == TWO_PIECES
    assert os.listdir(tmp_path) == ["f"]


async def test_the_name_of_a_draft_is_refused(kernel: JailedKernel) -> None:
    with pytest.raises(KernelFileError) as refused:
        await kernel.put_file(f"{DRAFT}99999999", b"mine")
    assert refused.value.kind == "invalid_path"


async def test_a_sparse_giant_is_refused_by_its_apparent_size(kernel: JailedKernel) -> None:
    await run(kernel, "open('giant', 'wb').truncate(1 << 40)")
    with pytest.raises(KernelFileError, match=f"has {1 << 40} bytes") as refused:
        await kernel.get_file("giant", max_bytes=1 << 20)
    assert refused.value.kind == "too_large"


@pytest.mark.parametrize("path", ["link", "folder_link/secret", "pipe", "folder", "nothing/../file", "/etc/passwd", ""])
async def test_what_is_no_regular_file_below_the_folder_is_refused(
    kernel: JailedKernel, tmp_path: Path, path: str
) -> None:
    outside = tmp_path.with_name("outside")
    outside.mkdir(exist_ok=True)
    (outside / "secret").write_text("secret")
    (tmp_path / "link").symlink_to(outside / "secret")
    (tmp_path / "folder_link").symlink_to(outside)
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for attempt in (
        kernel.get_file(path, max_bytes=100),
        kernel.put_file(path, b"mine"),
        kernel.delete_file(path),
    ):
        with pytest.raises(KernelFileError) as refused:
            await attempt
        assert refused.value.kind == "invalid_path"
    assert (outside / "secret").read_text() == "secret"
    assert (tmp_path / "link").is_symlink()


async def test_a_missing_file_is_not_found(kernel: JailedKernel) -> None:
    for attempt in (kernel.get_file("no/file", max_bytes=1), kernel.delete_file("file")):
        with pytest.raises(KernelFileError) as refused:
            await attempt
        assert refused.value.kind == "not_found"


async def test_a_deleted_file_is_gone(kernel: JailedKernel) -> None:
    await kernel.put_file("a/b", b"")
    await kernel.delete_file("a/b")
    assert await kernel.list_files(max_files=10) == ([], False)


async def test_a_listing_has_the_regular_files_in_the_order_of_their_paths(
    kernel: JailedKernel, tmp_path: Path
) -> None:
    for path in ("b/c", "b.txt", "b-1", "a", "é"):
        await kernel.put_file(path, b"12")
    (tmp_path / "loop").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / os.fsdecode(b"\xff")).touch()
    files, truncated = await kernel.list_files(max_files=5)
    assert ([file.path for file in files], truncated) == (["a", "b-1", "b.txt", "b/c", "é"], False)
    assert {file.size for file in files} == {2}
    files, truncated = await kernel.list_files(max_files=4)
    assert ([file.path for file in files], truncated) == (["a", "b-1", "b.txt", "b/c"], True)


@pytest.mark.parametrize(
    "code",
    ["for i in range(5000): open(f'{i:05}' + 'é' * 110, 'w')", "for i in range(100): os.mkdir('d'); os.chdir('d')"],
    ids=["names", "depth"],
)
async def test_a_listing_is_bounded_whatever_the_tree(kernel: JailedKernel, code: str) -> None:
    assert (await run(kernel, f"import os\n{code}", timeout_s=60)).status == "ok"
    assert (await kernel.list_files(max_files=10_000))[1]
    assert kernel.alive


TRICKLE = """
import gc, time
kernel = next(thing for thing in gc.get_objects() if type(thing).__name__ == 'Kernel')

def answer(request, fds):
    time.sleep(0.2)
    return {'nonce': request['nonce'], 'problem': None, 'size': 2**62, 'data': 'eHg='}

kernel._answer = answer
"""


async def test_a_file_that_is_taken_in_drops_is_given_up(kernel: JailedKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jailed_kernel, "REQUEST_TIMEOUT_S", 0.7)
    await run(kernel, TRICKLE.replace("'size': 2**62, 'data': 'eHg='", ""))
    with pytest.raises(KernelUnavailable, match="does not answer"):
        await asyncio.wait_for(kernel.put_file("f", bytes(100 * FILE_CHUNK_BYTES)), 10)
    assert not kernel.alive


async def test_a_file_that_comes_in_drops_is_given_up(kernel: JailedKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jailed_kernel, "REQUEST_TIMEOUT_S", 0.7)
    monkeypatch.setattr("cellar_executor.kernels.session_files.FILE_CHUNK_BYTES", 2)
    await run(kernel, TRICKLE)
    with pytest.raises(KernelUnavailable, match="does not answer"):
        await asyncio.wait_for(kernel.get_file("f", max_bytes=1 << 20), 10)
    assert not kernel.alive


async def test_files_of_a_dead_session_are_unavailable(kernel: JailedKernel) -> None:
    await run(kernel, "import os; os._exit(0)")
    with pytest.raises(KernelUnavailable):
        await kernel.list_files(max_files=1)


# --- memory -------------------------------------------------------------------------------------

HOLD_ALL = """
import resource
held = []
small = [bytes(400) for _ in range(20_000)]
used = int(open('/proc/self/statm').read().split()[5]) * 4096
resource.setrlimit(resource.RLIMIT_DATA, (used + (64 << 20), -1))
size = 32 << 20
while size >= 65536:
    try:
        held.append(bytearray(size))
    except MemoryError:
        size //= 2
small = small[::1000]  # room for small objects is left, in memory that Python has taken already
"""


@pytest.mark.parametrize("loaded", [True, False], ids=["later", "first"])
async def test_a_session_that_holds_its_last_byte_outlives_a_put(kernel: JailedKernel, loaded: bool) -> None:
    if loaded:
        await kernel.put_file("f", b"old")
    await run(kernel, HOLD_ALL.replace("65536", "64"))
    with pytest.raises(KernelFileError, match="memory is full"):
        await kernel.put_file("f", TWO_PIECES)
    await run(kernel, "del held")
    assert kernel.alive


async def test_a_file_system_without_memory_says_so(kernel: JailedKernel) -> None:
    await run(kernel, "import os\ndef full(*args): raise OSError(12, 'Cannot allocate memory')\nos.listdir = full")
    with pytest.raises(KernelFileError, match="memory is full") as refused:
        await kernel.put_file("f", b"new")
    assert refused.value.kind == "too_large"
    assert kernel.alive


async def test_a_session_that_holds_all_its_memory_outlives_requests_that_need_some(kernel: JailedKernel) -> None:
    await kernel.put_file("f", b"old")
    await run(kernel, HOLD_ALL)
    assert (await run(kernel, "mine = 1")).status == "ok"
    with pytest.raises(KernelFileError, match="memory is full") as refused:
        await kernel.put_file("f", bytes(8 * FILE_CHUNK_BYTES))
    assert refused.value.kind == "too_large"
    outcome = await run(kernel, "mine = 2; " + "#" * 500_000)
    assert outcome.error is not None
    assert (outcome.status, outcome.error.type) == ("error", "MemoryError")
    assert await result(kernel, "mine") == "1"
    outcome = await kernel.run_cell("mine = 2", timeout_s=5, stdin="x" * 500_000)
    assert outcome.status == "error"
    await run(kernel, "held.clear()")
    assert await result(kernel, "mine") == "1"
    assert [file.path for file in (await kernel.list_files(max_files=2))[0]] == ["f"]
    await kernel.put_file("f", bytes(8 * FILE_CHUNK_BYTES))


async def test_a_piece_that_does_not_fit_into_memory_takes_its_draft_along(
    kernel: JailedKernel, tmp_path: Path
) -> None:
    ask = kernel._ask

    async def fill(*args: Any, **arguments: Any) -> Any:
        if arguments["offset"]:
            await run(kernel, HOLD_ALL)
        return await ask(*args, **arguments)

    kernel._ask = fill  # type: ignore[method-assign]
    with pytest.raises(KernelFileError, match="memory is full"):
        await kernel.put_file("f", TWO_PIECES)
    assert os.listdir(tmp_path) == []
