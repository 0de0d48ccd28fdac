__version__ = "0.1.0"

from typing import TYPE_CHECKING

if TYPE_CHECKING: from .all import *

def __getattr__(name):
    "A module of the package, or a name of `fastai_mix.all`, imported when it is first asked for: `fastai_mix.MixUp`"
    from importlib import import_module
    from importlib.util import find_spec
    if not name.startswith('_'):
        if find_spec(f'{__name__}.{name}'): return import_module(f'.{name}', __name__)
        everything = vars(import_module('.all', __name__))
        if name in everything: return everything[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

def __dir__():
    "The modules are there once they have been imported, all other names always"
    from importlib import import_module
    return sorted({*globals(), *(o for o in vars(import_module('.all', __name__)) if not o.startswith('_'))})
