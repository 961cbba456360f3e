"""Models in the form of Hugging Face: our transformer and its tokenizer, text models, and checkpoints.

May import: `tasks` and below. Open `sector.py` first: the model that every engine computes; `layers.py` has its layers.
`checkpoint.py` saves, loads, and looks up the task of weights. Importing this package registers our classes with
transformers.
"""

from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from sector.engine.models.sector import SectorForCausalLM
from sector.engine.models.sector_config import SectorConfig
from sector.engine.models.tokenizer import SectorTokenizer

AutoConfig.register(SectorConfig.model_type, SectorConfig, exist_ok=True)
AutoModelForCausalLM.register(SectorConfig, SectorForCausalLM, exist_ok=True)
AutoTokenizer.register(SectorConfig, slow_tokenizer_class=SectorTokenizer, exist_ok=True)
