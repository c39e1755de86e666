"""A box that offers an image of the operator's own beside the one that ships."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from bento_tor.client import parse
from bento_tor.errors import Refused
from bento_tor.sandbox import images

pytestmark = pytest.mark.sandbox

SOURCE = "# /// script\n# dependencies = ['six']\n# [tool.bento]\n# image = '{}'\n# ///\n" + (
    "def f():\n    import six\n    return six.__version__\n"
)


def test_a_function_gets_the_image_that_it_asks_for_and_the_client_sees_its_digest(new_box, short_path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="bento-images-") as directory:
        folder = Path(directory)
        folder.chmod(0o755)
        listed = folder / "mine.txt"
        listed.write_text("six==1.16.0\n")
        mine = images.build("mine", folder, lambda text: None, maybe_requirements=listed)
        images.build("python", folder, lambda text: None)
        running = new_box(config=f"images = '{folder}'\nready = 1\n[policy]\nimages = ['python', 'mine']")
        with running.connect() as box:
            found = box.policy().found
            assert found["mine"].digest == mine.digest and found["mine"].packages == ("six",)
            assert list(box.run(parse("f", SOURCE.format("mine")))) == [b"1.16.0"]
            with pytest.raises(Refused, match="its image 'python' has .*requests"):
                box.run(parse("f", SOURCE.format("python")))
            plain = "def f():\n    try:\n        import six\n    except ImportError:\n        return 'none here'\n"
            assert list(box.run(parse("f", plain))) == [b"none here"]
        assert running.stop() == 0
