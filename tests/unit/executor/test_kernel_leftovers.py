"""Threads that outlive their cell; processes: test_jailed_kernel."""

import io
import threading

from cellar_executor.kernels import kernel_leftovers


def test_a_thread_that_was_there_before_writes_nowhere_and_others_do() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), write_through=True)
    go, done = threading.Event(), threading.Event()

    def late() -> None:
        go.wait()
        stream.writelines(["late", "late"])
        done.set()

    threading.Thread(target=late).start()
    kernel_leftovers.mute_leftover_threads([stream])
    go.set()
    done.wait()
    fresh = threading.Thread(target=print, args=("fresh",), kwargs={"file": stream})
    fresh.start()
    fresh.join()
    print("main", file=stream)
    assert stream.buffer.getvalue() == b"fresh\nmain\n"
