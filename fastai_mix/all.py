"Everything, for `from fastai_mix.all import *` behind `from fastai.vision.all import *`"
from .data.check import *
from .data.folds import *
from .data.leaves import *
from .data.soft import *
from .vision.box import *
from .vision.cam import *
from .vision.learner import *
from .vision.tta import *
from .callback.mix import *
from .callback.snapmix import *
from .callback.gridmask import *
from .callback.choice import *
from .callback.plc import *
from .callback.resize import *
from .callback.branch import *
from .schedule import *
from .interpret import *
