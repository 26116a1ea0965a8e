"""The reference library's command line, which needs a name that Python 3.10 took away."""

import collections
import collections.abc
import sys

setattr(collections, "Iterator", collections.abc.Iterator)  # noqa: B010 - mypy knows it gone
from zerorpc.cli import main  # noqa: E402

sys.exit(main())
