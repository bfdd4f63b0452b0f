import subprocess
import sys

import cellar_client
from cellar_client import errors


def test_exported_names_exist_and_are_sorted() -> None:
    assert list(cellar_client.__all__) == sorted(cellar_client.__all__)
    assert all(hasattr(cellar_client, name) for name in cellar_client.__all__)


def test_every_error_is_exported() -> None:
    own = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    assert own <= set(cellar_client.__all__)


def test_importing_the_client_pulls_in_neither_the_server_nor_a_tensor_library() -> None:
    code = "import sys, cellar_client.cli; print(*{name.split('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"fastapi", "redis", "torch", "cellar_executor", "cellar_trainer"} & set(loaded)
