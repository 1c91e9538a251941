"""The version of eqx_slm, where files that say it find it without the package."""

__version__ = "0.1.0"
