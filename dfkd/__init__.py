"""dfkd: recover a compressed network without its data.

>>> dreams = dfkd.invert(teacher, num_images=1024, image_shape=(3, 32, 32))
>>> student = dfkd.prune(teacher, amount=0.75)
>>> dfkd.recover(student, teacher, dreams)
"""

from dfkd.api import invert, load_dreams, prune, recover
from dfkd.dreams import Dreams
from dfkd.models.student_file import load_student

__all__ = ["Dreams", "invert", "load_dreams", "load_student", "prune", "recover"]
