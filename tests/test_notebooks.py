"Runs every notebook as nbdev does, flags respected."
import pytest
from nbdev.config import get_config
from nbdev.doclinks import nbglob
from nbdev.test import test_nb as run_nb

cfg = get_config()

@pytest.mark.parametrize('path', sorted(nbglob(as_path=True)), ids=lambda p: str(p.relative_to(cfg.nbs_path)))
def test_notebook(path): assert run_nb(path.absolute(), skip_flags=cfg.tst_flags.split(), basepath=cfg.config_path)[0]
