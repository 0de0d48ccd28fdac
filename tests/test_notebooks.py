"Runs every notebook as nbdev does, flags respected."
import pytest
from nbdev.config import get_config
from nbdev.doclinks import nbglob
from nbdev.test import test_nb as run_nb

cfg = get_config()

@pytest.mark.parametrize('path', sorted(nbglob(as_path=True)), ids=lambda p: str(p.relative_to(cfg.nbs_path)))
def test_notebook(path): assert run_nb(path.absolute(), skip_flags=cfg.tst_flags.split(), basepath=cfg.config_path)[0]

@pytest.mark.parametrize('path', sorted(nbglob(as_path=True)), ids=lambda p: p.name)
def test_saved_outputs_name_no_path_of_the_machine(path): assert 'site-packages' not in path.read_text(encoding='utf-8')
