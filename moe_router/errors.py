"""Every error this package raises on purpose. Each message names the thing and the remedy, on one line.

MoeRouterError
├── ConfigError      a setting is wrong or two settings conflict
├── InputError       a file or record the user gave cannot be used
├── WorkspaceError   a stage's input is missing, or a file in the workspace is damaged
├── BaseModelError   the base cannot be loaded, or does not fit the library
└── LibraryError     an expert or a gate is missing, corrupt, non-finite, or belongs to another base
"""


class MoeRouterError(Exception):
    """Root of the tree: the command line prints it on one line and exits with 1."""


class ConfigError(MoeRouterError):
    """A setting is out of range, unknown, or in conflict with another."""


class InputError(MoeRouterError):
    """A source file or record cannot be used as it is."""


class WorkspaceError(MoeRouterError):
    """A stage's input is not there yet, or a file of the workspace is damaged."""


class BaseModelError(MoeRouterError):
    """The base model cannot be found or loaded."""


class LibraryError(MoeRouterError):
    """An expert or the gate is missing, damaged, non-finite, or made for another base."""
