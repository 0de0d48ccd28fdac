"Clean forwards: their precision, and that hooks of other callbacks do not see them."
import pytest
import torch
from fastai.callback.hook import ActivationStats, HookCallback
from fastai.vision.all import Callback, nn
from fastai_mix.callback.mix import CutMix
from fastai_mix.callback.snapmix import SnapMix
from fastai_mix.vision.forward import clean_logits

@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float64])
def test_logits_in_the_precision_of_the_model(dtype):
    model = nn.Sequential(nn.Conv2d(3, 6, 3, stride=4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5))
    assert clean_logits(model.to(dtype), torch.randn(2,3,32,32)).dtype==dtype

# hooks of others

class Seen(Callback):
    "Keep what another callback's hook stored of each step's forward, and the prediction that it made"
    order,run_valid = 100,False
    def __init__(self, stored): self.stored,self.rows = stored,[]
    def after_step(self): self.rows.append((self.stored(self.learn), self.pred.detach().mean().item()))

@pytest.mark.parametrize('mix', [SnapMix(echo=True), SnapMix(), SnapMix(echo=True, layer='4'), CutMix(echo=True)],
    ids=lambda o: f'{type(o).__name__}-{o.echo}')
def test_hooks_of_other_callbacks_see_training_steps_alone(toy, mix):
    seen = Seen(lambda learn: learn.activation_stats.hooks.stored[-1]['mean'])
    learn = toy(cbs=[mix, ActivationStats(), seen], n=32)
    learn.activation_stats.modules = [learn.model[-1]]
    learn.fit(1)
    assert len(seen.rows)==4
    for stored,mean in seen.rows: assert stored==pytest.approx(mean, abs=1e-6)

def test_backward_hooks_of_other_callbacks_see_training_steps_alone(toy):
    class Grads(HookCallback):
        run_valid = False
        def hook(self, m, i, o): return o[0].detach().clone()
    def run(cbs):
        grads = Grads(is_forward=False)
        seen = []
        class Keep(Callback):
            order,run_valid = 100,False
            def after_step(self): seen.append((grads.hooks.stored[-1], self.learn.model[-1].bias.grad.clone()))
        learn = toy(cbs=[*cbs, grads, Keep()], n=32)
        grads.modules = [learn.model[-1]]
        learn.fit(1)
        return seen
    for stored,bias in run([SnapMix(echo=True)]): torch.testing.assert_close(stored.sum(0), bias)
