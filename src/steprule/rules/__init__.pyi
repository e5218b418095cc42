# Written by tools/write_stubs.py: make stubs
from collections.abc import Mapping

from steprule.registry import RULES as RULES
from steprule.rule import Rule
from steprule.rules.adagrad import Adagrad as Adagrad
from steprule.rules.adagrad import Adadelta as Adadelta
from steprule.rules.adagrad import Rprop as Rprop
from steprule.rules.adam import AdamW as AdamW
from steprule.rules.adam import Adam as Adam
from steprule.rules.adam import NAdam as NAdam
from steprule.rules.adam import RAdam as RAdam
from steprule.rules.adam import Adamax as Adamax
from steprule.rules.adam import SparseAdam as SparseAdam
from steprule.rules.factored import Adafactor as Adafactor
from steprule.rules.muon import Muon as Muon
from steprule.rules.rmsprop import RMSprop as RMSprop
from steprule.rules.sgd import SGD as SGD
from steprule.rules.sgd import ASGD as ASGD
from steprule.rules.adagrad import MADGRAD as MADGRAD
from steprule.rules.adam import AdamC as AdamC
from steprule.rules.adam_variants import AdaBelief as AdaBelief
from steprule.rules.adam_variants import Yogi as Yogi
from steprule.rules.adam_variants import LaProp as LaProp
from steprule.rules.adam_variants import ADOPT as ADOPT
from steprule.rules.adam_variants import AdEMAMix as AdEMAMix
from steprule.rules.adam_variants import Adan as Adan
from steprule.rules.adam_variants import StableAdamW as StableAdamW
from steprule.rules.adam_variants import AdamAtan2 as AdamAtan2
from steprule.rules.adam_variants import MARS as MARS
from steprule.rules.adam_variants import Grams as Grams
from steprule.rules.factored import CAME as CAME
from steprule.rules.factored import AdamMini as AdamMini
from steprule.rules.factored import SM3 as SM3
from steprule.rules.kronecker import SOAP as SOAP
from steprule.rules.kronecker import Shampoo as Shampoo
from steprule.rules.kronecker import ASGO as ASGO
from steprule.rules.kronecker import KLShampoo as KLShampoo
from steprule.rules.kronecker import KLSOAP as KLSOAP
from steprule.rules.kronecker import SPlus as SPlus
from steprule.rules.kronecker import PSGDKron as PSGDKron
from steprule.rules.layerwise import LARS as LARS
from steprule.rules.layerwise import LAMB as LAMB
from steprule.rules.layerwise import NovoGrad as NovoGrad
from steprule.rules.muon import NorMuon as NorMuon
from steprule.rules.muon import AdaMuon as AdaMuon
from steprule.rules.muon import MuonEq as MuonEq
from steprule.rules.muon import MUD as MUD
from steprule.rules.muon import PolarGrad as PolarGrad
from steprule.rules.muon import Dion2 as Dion2
from steprule.rules.muon import Mano as Mano
from steprule.rules.muon import Scion as Scion
from steprule.rules.parameter_free import Prodigy as Prodigy
from steprule.rules.parameter_free import DAdaptAdam as DAdaptAdam
from steprule.rules.parameter_free import DoG as DoG
from steprule.rules.schedule_free import ScheduleFreeSGD as ScheduleFreeSGD
from steprule.rules.schedule_free import ScheduleFreeAdamW as ScheduleFreeAdamW
from steprule.rules.schedule_free import ScheduleFreeRAdam as ScheduleFreeRAdam
from steprule.rules.sgd import Signum as Signum
from steprule.rules.sgd import Lion as Lion

__all__ = [
    "ADOPT",
    "ASGD",
    "ASGO",
    "AdEMAMix",
    "AdaBelief",
    "AdaMuon",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamAtan2",
    "AdamC",
    "AdamMini",
    "AdamW",
    "Adamax",
    "Adan",
    "CAME",
    "DAdaptAdam",
    "Dion2",
    "DoG",
    "Grams",
    "KLSOAP",
    "KLShampoo",
    "LAMB",
    "LARS",
    "LaProp",
    "Lion",
    "MADGRAD",
    "MARS",
    "MUD",
    "Mano",
    "Muon",
    "MuonEq",
    "NAdam",
    "NorMuon",
    "NovoGrad",
    "OWN",
    "PSGDKron",
    "PolarGrad",
    "Prodigy",
    "RAdam",
    "RMSprop",
    "RULES",
    "Rprop",
    "SGD",
    "SM3",
    "SOAP",
    "SPlus",
    "ScheduleFreeAdamW",
    "ScheduleFreeRAdam",
    "ScheduleFreeSGD",
    "Scion",
    "Shampoo",
    "Signum",
    "SparseAdam",
    "StableAdamW",
    "Yogi",
]

OWN: Mapping[str, type[Rule]]
