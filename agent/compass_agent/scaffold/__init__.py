"""Starting a bundle from a model and a folder of inputs."""

from compass_agent.scaffold.model_shape import ModelShape, shape_of
from compass_agent.scaffold.new_bundle import NewBundle, write_bundle

__all__ = ["ModelShape", "NewBundle", "shape_of", "write_bundle"]
