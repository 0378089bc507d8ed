from .attribution.calibration import calibrate as calibrate
from .attribution.decision import (
    Attribution as Attribution,
)
from .attribution.decision import (
    Reason as Reason,
)
from .attribution.decision import (
    Verdict as Verdict,
)
from .attribution.derived_registry import DerivedRegistry as DerivedRegistry
from .attribution.files import (
    attribute as attribute,
)
from .attribution.pictures import Picture as Picture
from .attribution.pictures import read_picture as read_picture
from .attribution.registry import (
    Registry as Registry,
)
from .attribution.registry import (
    RegistryError as RegistryError,
)
from .attribution.registry import (
    UnknownUserError as UnknownUserError,
)
from .errors import FpjaxError as FpjaxError
from .errors import InputError as InputError
from .fingerprint.basis import Basis as Basis
from .fingerprint.basis import pca as pca
from .fingerprint.block_basis import BlockBasis as BlockBasis
from .fingerprint.calibration import Calibration as Calibration
from .fingerprint.derived import DerivedKeys as DerivedKeys
from .fingerprint.derived import SecretError as SecretError
from .fingerprint.derived import create_secret as create_secret
from .fingerprint.derived import read_secret as read_secret
from .fingerprint.embed import Generated as Generated
from .fingerprint.embed import generate as generate
from .fingerprint.fit import fit_basis as fit_basis
from .fingerprint.issued import issue_model as issue_model
from .fingerprint.keys import sample_keys as sample_keys
from .fingerprint.keys import secret_keys as secret_keys
from .fingerprint.scheme import Scheme as Scheme
from .fingerprint.scheme import load_scheme as load_scheme
from .fingerprint.scheme_files import SchemeError as SchemeError
from .fingerprint.tied_pca import channel_pca as channel_pca
from .fingerprint.tied_pca import joint_pca as joint_pca
from .inversion.candidates import CandidateFits as CandidateFits
from .inversion.candidates import invert_candidates as invert_candidates
from .inversion.degradation import Degradation as Degradation
from .inversion.driver import invert as invert
from .inversion.driver import invert_iter as invert_iter
from .inversion.encoder_reader import (
    EncoderReader as EncoderReader,
)
from .inversion.encoder_reader import (
    fit_encoder_reader as fit_encoder_reader,
)
from .inversion.information import (
    KeyInformation as KeyInformation,
)
from .inversion.information import (
    key_information as key_information,
)
from .inversion.observation import (
    Gaussian as Gaussian,
)
from .inversion.observation import (
    Observation as Observation,
)
from .inversion.observation import (
    PerImage as PerImage,
)
from .inversion.observation import (
    Rounded8Bit as Rounded8Bit,
)
from .inversion.observation_filtered import Filter as Filter
from .inversion.observation_filtered import Filtered as Filtered
from .inversion.observation_jpeg import Jpeg as Jpeg
from .inversion.prior import BoundsPrior as BoundsPrior
from .inversion.prior import GaussianPrior as GaussianPrior
from .inversion.problem import Problem as Problem
from .inversion.solution import Solution as Solution
from .inversion.solution import Status as Status
from .inversion.solvers.adam import Adam as Adam
from .inversion.solvers.base import Solver as Solver
from .inversion.solvers.levenberg_marquardt import (
    GaussNewton as GaussNewton,
)
from .inversion.solvers.levenberg_marquardt import (
    LevenbergMarquardt as LevenbergMarquardt,
)
from .inversion.solvers.matrix_free import MatrixFree as MatrixFree
from .io.images import (
    ImageError as ImageError,
)
from .io.images import (
    load_image as load_image,
)
from .io.images import (
    save_image as save_image,
)
from .models.checkpoint import CheckpointFormatError as CheckpointFormatError
from .models.conformance import (
    GeneratorError as GeneratorError,
)
from .models.conformance import (
    check_generator as check_generator,
)
from .models.diffusion import ddim_sample as ddim_sample
from .models.generator import Generator as Generator
from .models.ldm_generator import LDMGenerator as LDMGenerator
from .models.stylegan2_generator import StyleGAN2Generator as StyleGAN2Generator
from .zoo.load import (
    load_generator as load_generator,
)
from .zoo.load import (
    load_perceptual as load_perceptual,
)
from .zoo.load import (
    load_prior as load_prior,
)

__version__: str
