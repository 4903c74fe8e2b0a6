"""A few open models by name: the one that was used longest ago is dropped for a new one."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

Model = TypeVar("Model")


class ModelPool(Generic[Model]):
    """Holds at most `size` models; not for use by several threads at once."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._models: OrderedDict[str, Model] = OrderedDict()

    def get(self, key: str, make: Callable[[], Model]) -> Model:
        """Return the model of this name, made now if it is not held."""
        model = self._models.get(key)
        if model is None:
            model = self._models[key] = make()
        self._models.move_to_end(key)
        while len(self._models) > self._size:
            self._models.popitem(last=False)
        return model
