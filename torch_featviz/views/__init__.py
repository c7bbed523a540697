"""Views: each is a function that returns a Picture."""

from torch_featviz.views.adversarial import adversarial
from torch_featviz.views.attention import attention
from torch_featviz.views.attention_distance import AttentionDistance, attention_distance
from torch_featviz.views.attributions import attributions
from torch_featviz.views.augmentations import augmentations
from torch_featviz.views.confusion import confusion
from torch_featviz.views.curves import curves
from torch_featviz.views.effective_field import effective_field
from torch_featviz.views.exemplars import exemplars
from torch_featviz.views.images import images
from torch_featviz.views.kernels import kernels
from torch_featviz.views.look import look
from torch_featviz.views.maps import feature_maps
from torch_featviz.views.overview import overview
from torch_featviz.views.pixels import pixels
from torch_featviz.views.predictions import predictions
from torch_featviz.views.projection import projection
from torch_featviz.views.samples import samples
from torch_featviz.views.segments import segments
from torch_featviz.views.tokens import tokens

__all__ = [
    "AttentionDistance",
    "adversarial",
    "attention",
    "attention_distance",
    "attributions",
    "augmentations",
    "confusion",
    "curves",
    "effective_field",
    "exemplars",
    "feature_maps",
    "images",
    "kernels",
    "look",
    "overview",
    "pixels",
    "predictions",
    "projection",
    "samples",
    "segments",
    "tokens",
]
