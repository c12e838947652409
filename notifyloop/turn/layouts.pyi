"""What the compiled modules beside were told, and how the classes that they read are kept as they expect."""

PYTHON: str  # the version for which they were compiled
SOURCES: dict[str, str]  # the hash of each file that they were made from
CLASSES: dict[tuple[str, str], tuple[int, dict[str, int]]]  # by module and name: an object's size, and where slots lie

def guard(kind: type) -> None:
    """Have no slot of a class and its subclasses ever be empty. Raises TypeError if it has more in it than slots."""

def offset(descriptor: object) -> int:
    """Where a slot lies in an object; -1 if it is none."""
