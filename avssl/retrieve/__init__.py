"""Looking things up with trained encoders."""

from avssl.retrieve.gallery import write_gallery, write_preview

__all__ = ["write_gallery", "write_preview"]
