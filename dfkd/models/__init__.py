"""Networks: the CIFAR and torchvision zoo, a user's weights, and what every network here must have."""

from dfkd.models.batch_norm import batch_norm_layers
from dfkd.models.cifar_resnet import CifarResNet
from dfkd.models.input_spec import InputSpec
from dfkd.models.torchvision_zoo import torchvision_model
from dfkd.models.weights import load_weights
from dfkd.models.wide_resnet import WideResNet

__all__ = ["CifarResNet", "InputSpec", "WideResNet", "batch_norm_layers", "load_weights", "torchvision_model"]
