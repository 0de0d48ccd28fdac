"Writes README.md from nbs/index.ipynb: `python tools/build_readme.py`; `--check` only says whether the two agree."
import sys
from shutil import rmtree

from fastcore.nbio import read_nb
from nbdev.config import get_config
from nbdev.serve import proc_nbs

def readme():
    "The markdown cells of the processed front page, with pictures by an address that GitHub and PyPI show"
    cfg = get_config()
    try: nb = read_nb(proc_nbs(file_glob='index.ipynb', force=True, n_workers=0)/'index.ipynb')
    finally: rmtree(cfg.config_path/'_proc', ignore_errors=True)
    title = read_nb(cfg.nbs_path/'index.ipynb').cells[0].source # processing turns it into front matter
    cells = [c.source.strip() for c in nb.cells if c.cell_type=='markdown' and not c.source.startswith('<!-- WARNING')]
    text = '\n\n'.join([title, *cells])
    images = f'https://raw.githubusercontent.com/{cfg.git_url.split("github.com/")[1]}/{cfg.branch}/nbs/images/'
    text = text.replace('](images/', f']({images}')
    return f'<!-- Made from nbs/index.ipynb by tools/build_readme.py: edit that -->\n\n{text}\n'

if __name__=='__main__':
    out = get_config().config_path/'README.md'
    if '--check' in sys.argv:
        sys.exit(0 if out.read_text(encoding='utf-8')==readme()
            else f'{out} is not what nbs/index.ipynb says: run tools/build_readme.py')
    out.write_text(readme(), encoding='utf-8')
