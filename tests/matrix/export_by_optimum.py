"""python export_by_optimum.py CHECKPOINT OUTPUT: a T5 as optimum-cli exports it for text2text-generation-with-past.

Runs in an environment of its own, whose transformers is older than make.py's: pip install optimum-onnx==0.1.0
"""

import sys

from optimum.exporters.onnx import main_export

main_export(sys.argv[1], sys.argv[2], task="text2text-generation-with-past", do_validation=False, no_post_process=False)
