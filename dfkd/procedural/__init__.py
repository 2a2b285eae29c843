"""Procedural pictures: shapes, textures and colours from formulas, a start for inversion that knows no data.

Natural images and these share what white noise lacks: edges, flat areas, colours that go together and a spectrum that
falls with frequency. Networks can learn to see from such pictures alone (Baradad et al. 2021, "Learning to See by
Looking at Noise"). Every family is a pure function of a count, an image shape and a random generator.
"""

from dfkd.procedural.pictures import FAMILIES, pictures

__all__ = ["FAMILIES", "pictures"]
