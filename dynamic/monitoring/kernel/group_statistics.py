"""Files of a control group with a name and a number in each line, and the memory of it that can be dropped."""

from dynamic.monitoring.kernel.kernel_files import KernelFile, integer

_V2_PAGES = ("active_file", "inactive_file", "file", "shmem", "file_dirty", "file_writeback", "slab_reclaimable")
_V1_PAGES = ("active_file", "inactive_file", "cache", "shmem", "dirty", "writeback")
_PAGES = frozenset((*_V2_PAGES, *_V1_PAGES, *(f"total_{name}" for name in _V1_PAGES)))


def entries(file: KernelFile, names: frozenset[str]) -> dict[str, int]:
    """The numbers of some lines.

    Args:
        file: A file of `name number` lines.
        names: Names of the lines.

    Returns:
        Numbers by name, without the lines that the file does not have.

    Raises:
        OSError: The file cannot be read.
        ValueError: One of these lines has no number.
    """
    numbers = {}
    for line in file.text().splitlines():
        key, _, value = line.partition(" ")
        if key in names:
            numbers[key] = integer(value, file.path)
    return numbers


def droppable_bytes(stat: KernelFile, version: int) -> int:
    """Memory that the kernel can reclaim without writing: Documentation/admin-guide/cgroup-v2.rst and
    cgroup-v1/memory.rst.

    MemAvailable, the kernel's own estimate for a machine, counts the same pages. Shared memory is in the sum of file
    pages and not in their lists.

    Args:
        stat: The memory.stat of a group.
        version: Version of the control groups. Version 1 has sums with the groups below ("total_").

    Returns:
        Bytes.

    Raises:
        OSError: The file cannot be read.
        ValueError: One of its numbers is none.
    """
    numbers = entries(stat, _PAGES)
    if version == 1:
        sums = {name.removeprefix("total_"): value for name, value in numbers.items() if name.startswith("total_")}
        numbers = sums or numbers
        file, dirty, writeback = numbers.get("cache"), numbers.get("dirty", 0), numbers.get("writeback", 0)
    else:
        file, dirty, writeback = numbers.get("file"), numbers.get("file_dirty", 0), numbers.get("file_writeback", 0)
    active, inactive = numbers.get("active_file"), numbers.get("inactive_file")
    if file is not None and (active is None or inactive is None):
        pages = max(0, file - numbers.get("shmem", 0))
    else:
        pages = (active or 0) + (inactive or 0)
    return max(0, pages - dirty - writeback) + numbers.get("slab_reclaimable", 0)
