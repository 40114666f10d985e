"""What people do with a model, each task one file and one flat function of five moves:

    encode      words -> conditioning               ldm.conditioning
    plan        noise levels and sampler            ldm.plan
    start       noise, or a noisy picture           ldm.draw
    guide       the network with its guidance       ldm.guidance
    draw        the loop, then pixels               ldm.draw

All tasks share these arguments; None means the model's own default.

    prompts     one text or several, or a ready Conditioning. A single one is drawn once per seed.
    negative    what to move away from, likewise: one for all pictures, or one each.
    height, width    of the picture in pixels.
    steps       how many steps the sampler takes.
    guidance    a number: 1 or less means off (samplers of CFG++ take an interpolation from 0 to 1); one such number per
                step; a function of sigma that gives it; or a function (network, cond, uncond) -> network. A function
                that can be called with one argument is taken for one of sigma.
    sampler     a name in samplers.SAMPLERS or another program's name for it; or a function (denoise, x, sigmas, noise,
                **options) that yields Steps. A function of your own is given exact levels and white noise; to change
                that, pass samplers.Sampler(function, ...).
    schedule    a name in samplers.schedules.SCHEDULES; a list of sigmas with its end, whatever `steps` says; or a
                function (levels, steps) -> such a list.
    options     keywords of the sampler, such as {"eta": 0.5}.
    seeds       one per picture, or one to count up from. Picture k takes all of its noise from seeds[k] alone.
    noise       a unit Gaussian (b 4 height/8 width/8) to start from, in place of that of the seeds.
    sizes, negative_sizes    SDXL's micro-conditioning, ldm.conditioning.Sizes: for the prompt, by default the picture's
                own size; and for the negative prompt, by default the same as for the prompt, but with the aesthetic
                score 2.5, which the refiner alone reads.
    network     what runs in place of model.unet, a function (x, t, context, vector) -> output.
    watch       is called with each Step; a tensor that it returns takes the place of step.x, and the sampler goes on
                from there.
    decode      False gives the final latents as the UNet sees them, in place of pixels.
"""

from ..plan import defaults, plan_part
from .depth_to_image import depth_to_image
from .edit import edit
from .image_to_image import image_to_image
from .inpaint import inpaint, inpaint_part
from .interpolate import interpolate
from .invert import invert
from .panorama import panorama
from .refine import refine
from .text_to_image import pair, text_to_image
from .two_pass import two_pass
from .upscale import upscale

# fmt: off
__all__ = [
    "defaults", "depth_to_image", "edit", "image_to_image", "inpaint", "inpaint_part", "interpolate", "invert", "pair",
    "panorama", "plan_part", "refine", "text_to_image", "two_pass", "upscale",
]
# fmt: on
