"""The number of this release, which the parts of the package can read as well."""

__version__ = "2.0.0"
