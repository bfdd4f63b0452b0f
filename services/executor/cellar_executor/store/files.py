"""Changes of files, in their place among the cells, so that a session can be played again with them.

A change is staged (durable, not yet part of the log), made by the kernel, and kept or dropped. Staged but never kept
means: a crash in between, so the kernel that may have made it is dead too, nobody was told that it was made, and no
replay has it. Whoever stages has the session's turn, so at most one change is staged, and the next takes its place.
"""

from redis.client import NEVER_DECODE

from cellar_executor.errors import Refusal
from cellar_executor.ids import Owned, Ref
from cellar_executor.records import FileChange
from cellar_executor.store.connection import Connection, answered, from_now


class FileLog(Connection):
    async def stage_file(self, owned: Owned, path: str, data: bytes | None, idle_ttl_s: float) -> int:
        """The number of a change that is about to be made: `data` put at `path`, or None for its deletion.

        Raises `session_not_found`, `too_many_cells` when the log is full.
        """
        kind, content = ("delete", b"") if data is None else ("put", data)
        reply = await self._script(
            "stage", owned, from_now(idle_ttl_s), self._quotas.max_log_bytes, kind, path.encode(), content
        )
        return int(reply[1])

    async def keep_file(self, owned: Owned, number: int, idle_ttl_s: float) -> None:
        """The staged change was made: it belongs to the log. Safe to repeat. Raises `session_not_found`."""
        await self._script("keep", owned, from_now(idle_ttl_s), number, "keep")

    async def drop_file(self, owned: Owned, number: int, idle_ttl_s: float) -> None:
        """The staged change was not made. Raises `session_not_found`."""
        await self._script("keep", owned, from_now(idle_ttl_s), number, "drop")

    async def file_changes(self, ref: Ref) -> list[FileChange]:
        """The log's changes, in order. Raises `session_not_found`."""
        count = await answered(self._redis.hget(f"cellar:session:{ref}", "files"))
        async with self._redis.pipeline() as pipe:
            for number in range(int(count or 0)):
                pipe.hmget(f"cellar:file:{ref}:{number}", "kind", "path", "before")
            rows = await answered(pipe.execute())
        if not all(kind for kind, _, _ in rows):
            raise Refusal("session_not_found")
        return [
            FileChange(number=number, path=path, deletes=kind == "delete", before=int(before))
            for number, (kind, path, before) in enumerate(rows)
        ]

    async def file_data(self, ref: Ref, number: int) -> bytes:
        """What a change put. Raises `session_not_found` when the session is deleted meanwhile."""
        key = f"cellar:file:{ref}:{number}"
        raw = {NEVER_DECODE: True}
        data = await answered(self._redis.execute_command("HGET", key, "data", **raw))  # type: ignore[no-untyped-call]  # has no types
        if data is None:
            raise Refusal("session_not_found")
        return bytes(data)
