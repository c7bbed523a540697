"""Healthy recipes of the first half: each learns, and a Monitor should say nothing of it."""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW
from torch.optim.lr_scheduler import OneCycleLR, StepLR

from benchmarks.recipes_harness import Run, healthy
from benchmarks.recipes_parts import (
    ConvNeXtBlock,
    LanguageModel,
    RowsRNN,
    ViT,
    batches,
    cnn,
    curves,
    digits,
    language,
    learn,
    marks,
    mlp,
    next_token,
    normed_cnn,
    pretrain,
    prices,
    raw_digits,
    regressor,
    resnet,
    warmup_cosine,
    zero,
)


@healthy("MLP", learns=0.4)
def mlp_sgd() -> Run:
    """Three linear layers, plain SGD."""
    net = mlp()
    return learn(net, SGD(net.parameters(), 0.1), digits(), steps=200)


@healthy("CNN", learns=0.5)
def cnn_adamw_onecycle() -> Run:
    """Three convolutions, AdamW, one cycle."""
    net = cnn()
    optimizer = AdamW(net.parameters(), 1e-2)
    return learn(net, optimizer, digits(), every=5, schedule=OneCycleLR(optimizer, 1e-2, 151, pct_start=0.2))


class OfBytes(nn.Module):
    """Takes pixels from 0 to 255, and scales them itself."""

    def __init__(self) -> None:
        super().__init__()
        self.net = cnn()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x / 127.5 - 1)


@healthy("CNN", learns=0.6)
def bytes_scaled_within() -> Run:
    """The model is given bytes, but its first layer is not."""
    net, (images, labels) = OfBytes(), raw_digits()
    return learn(net, Adam(net.parameters(), 5e-3), (images * 255 / 16, labels))


@healthy("CNN", learns=0.6)
def long_warmup() -> Run:
    """A warm-up of 100 steps: the loss stays at ln(10) for a while."""
    net = cnn()
    optimizer = SGD(net.parameters(), 0.1, momentum=0.9)
    return learn(net, optimizer, digits(), steps=300, every=5, schedule=warmup_cosine(optimizer, 100, 300))


@healthy("CNN", learns=0.5)
def cnn_momentum_steps() -> Run:
    """Batch norm and dropout; Nesterov momentum, weight decay, the rate by steps to a hundredth."""
    net = normed_cnn()
    optimizer = SGD(net.parameters(), 0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
    return learn(net, optimizer, digits(), schedule=StepLR(optimizer, 50, 0.1))


@healthy("CNN", learns=0.6)
def cnn_of_drawings() -> Run:
    """Circles and crosses of 29 x 29, every step looked at."""
    net = nn.Sequential(
        nn.Conv2d(1, 8, 5, 2), nn.ReLU(), nn.Conv2d(8, 16, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(576, 2)
    )
    return learn(net, SGD(net.parameters(), 0.02, momentum=0.9), marks(), steps=100, every=1, batch=20)


@healthy("ResNet", learns=0.6)
def resnet_zero_norms() -> Run:
    """The last norm of each block begins with zeros (Goyal et al. 2017)."""
    net = resnet()
    optimizer = SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=1e-4)
    return learn(net, optimizer, digits(), every=5, schedule=warmup_cosine(optimizer, 10, 150))


@healthy("ConvNeXt", learns=0.6)
def convnext_layer_scale() -> Run:
    """Layer scale of 1e-6, AdamW with weight decay 0.05 (Liu et al. 2022)."""
    blocks = [ConvNeXtBlock(16) for _ in range(3)]
    net = nn.Sequential(nn.Conv2d(1, 16, 2, 2), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))
    return learn(net, AdamW(net.parameters(), 5e-3, weight_decay=0.05), digits(16), every=4)


@healthy("ViT", learns=0.6)
def vit_warmup_cosine() -> Run:
    """A head of zeros, warm-up, cosine to 0, every second step looked at."""
    net = ViT()
    optimizer = AdamW(net.parameters(), 4e-3, weight_decay=0.05)
    return learn(net, optimizer, digits(), steps=220, every=2, schedule=warmup_cosine(optimizer, 20, 220))


class AdaLNZero(nn.Module):
    """A block modulated by the noise level; what modulates begins with zeros (DiT, Peebles & Xie 2023)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.modulation = nn.Linear(width, 3 * width)
        zero(self.modulation)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        shift, scale, gate = self.modulation(F.silu(level)).chunk(3, -1)
        return x + gate * self.down(F.gelu(self.up(self.norm(x) * (1 + scale) + shift)))


class Denoiser(nn.Module):
    """Guesses the noise in a digit; its last layer begins with zeros, too."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.first, self.level = nn.Linear(64, width), nn.Linear(1, width)
        self.blocks = nn.ModuleList(AdaLNZero(width) for _ in range(3))
        self.last = nn.Linear(width, 64)
        zero(self.last)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        x, level = self.first(x), self.level(level)
        for block in self.blocks:
            x = block(x, level)
        return self.last(x)


@healthy("diffusion", learns=0.6)
def dit_adaln_zero() -> Run:
    """adaLN-zero, a last layer of zeros, warm-up, every step looked at."""
    net = Denoiser()
    optimizer = AdamW(net.parameters(), 3e-3)
    schedule = warmup_cosine(optimizer, 50, 200)
    run = Run(net, every=1)
    for images, _ in batches(digits(), 64, 200):
        clean, level = images.flatten(1), torch.rand(64, 1)
        noise = torch.randn_like(clean)
        with run.step() as step:
            loss = F.mse_loss(net(clean * (1 - level).sqrt() + noise * level.sqrt(), level), noise)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step.log(loss=loss)
        schedule.step()
    return run


@healthy("language model", learns=0.6)
def lstm_language_model() -> Run:
    """Plain SGD with a large rate and gradients clipped at 0.25, as PyTorch's word_language_model."""
    net, text = LanguageModel(), language()
    optimizer = SGD(net.parameters(), 1.0)
    run = Run(net, every=5)
    for tokens, _ in batches((text, text), 32, 300):
        with run.step() as step:
            loss = next_token(net(tokens[:, :-1]), tokens[:, 1:])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 0.25)
            optimizer.step()
            step.log(loss=loss)
    return run


class Decoder(nn.Module):
    """Two causal blocks; the head is the embedding's own weight."""

    def __init__(self, tokens: int = 20, width: int = 32) -> None:
        super().__init__()
        self.embedding, self.places = nn.Embedding(tokens, width), nn.Embedding(24, width)
        for embedding in (self.embedding, self.places):
            nn.init.normal_(embedding.weight, std=0.02)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 2 * width, 0.1, "gelu", batch_first=True, norm_first=True)
            for _ in range(2)
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, tokens, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        x = self.embedding(x) + self.places(torch.arange(x.shape[1]))
        for block in self.blocks:
            x = block(x, mask, is_causal=True)
        return self.head(self.norm(x))


@healthy("language model", learns=0.6)
def decoder_tied_embedding() -> Run:
    """GPT-like: a tied head, small embeddings (std 0.02), no decay of vectors, warm-up, clipping at 1."""
    net, text = Decoder(), language()
    decayed = [each for each in net.parameters() if each.ndim > 1]
    groups = [{"params": decayed}, {"params": [e for e in net.parameters() if e.ndim < 2], "weight_decay": 0.0}]
    optimizer = AdamW(groups, 3e-3, betas=(0.9, 0.95), weight_decay=0.1)
    schedule = warmup_cosine(optimizer, 20, 120)
    run = Run(net, every=5)
    for tokens, _ in batches((text, text), 16, 120):
        with run.step() as step:
            loss = next_token(net(tokens[:, :-1]), tokens[:, 1:])
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            step.log(loss=loss)
    return run


@healthy("RNN", learns=0.6)
def gru_of_rows() -> Run:
    """A GRU over the rows of a digit, Adam, clipping at 1."""
    net = RowsRNN(nn.GRU(8, 32, batch_first=True), 32)
    optimizer = Adam(net.parameters(), 5e-3)
    run = Run(net, every=10)
    for images, labels in batches(digits(), 32, 150):
        optimizer.zero_grad()
        with run.step() as step:
            loss = F.cross_entropy(net(images), labels)
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            step.log(loss=loss)
    return run


def dcgan_weights(module: nn.Module) -> None:
    """N(0, 0.02), norms N(1, 0.02) (Radford et al. 2016)."""
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)


def dcgan_networks() -> nn.ModuleDict:
    """A generator that ends in a tanh, and its discriminator."""
    generator = nn.Sequential(
        nn.ConvTranspose2d(16, 32, 2, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.ConvTranspose2d(32, 16, 4, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.ConvTranspose2d(16, 1, 4, 2, 1), nn.Tanh(),
    )  # fmt: skip
    discriminator = nn.Sequential(
        nn.Conv2d(1, 16, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(16, 32, 4, 2, 1, bias=False), nn.BatchNorm2d(32),
        nn.LeakyReLU(0.2), nn.Conv2d(32, 1, 2), nn.Flatten(),
    )  # fmt: skip
    return nn.ModuleDict({"generator": generator, "discriminator": discriminator}).apply(dcgan_weights)


@healthy("GAN", learns=0.6)
def dcgan() -> Run:
    """Two optimizers, one Monitor of both. Its curve: how far the mean image is from the data's."""
    net = dcgan_networks()
    generator, discriminator = net["generator"], net["discriminator"]
    of_generator = Adam(generator.parameters(), 1e-3, (0.5, 0.999))
    of_discriminator = Adam(discriminator.parameters(), 1e-3, (0.5, 0.999))
    images, labels = raw_digits()
    images = images / 8 - 1
    mean = images.mean(0)
    run = Run(net, every=5)
    for real, _ in batches((images, labels), 64, 200):
        ones, zeros = torch.ones(64, 1), torch.zeros(64, 1)
        with run.step() as step:
            fake = generator(torch.randn(64, 16, 1, 1))
            of_discriminator.zero_grad()
            loss = F.binary_cross_entropy_with_logits(discriminator(real), ones)
            loss = loss + F.binary_cross_entropy_with_logits(discriminator(fake.detach()), zeros)
            loss.backward()
            of_discriminator.step()
            of_generator.zero_grad()
            fooled = F.binary_cross_entropy_with_logits(discriminator(fake), ones)
            fooled.backward()
            of_generator.step()
            step.log(discriminator_loss=loss, generator_loss=fooled)
        run.curve.append(float((fake.detach().mean(0) - mean).square().mean().sqrt()))
    return run


class LoRA(nn.Module):
    """A frozen linear layer and a low-rank change, of which B begins with zeros (Hu et al. 2021)."""

    def __init__(self, base: nn.Linear, rank: int = 4) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.a = nn.Parameter(torch.randn(rank, base.in_features) / math.sqrt(base.in_features))
        self.b = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + 2 * F.linear(F.linear(x, self.a), self.b)


@healthy("LoRA", learns=0.6)
def lora() -> Run:
    """A network that knows digits learns transposed ones; its own weights are frozen."""
    net, (images, labels) = mlp(), digits()
    pretrain(net, (images, labels))
    for i in (1, 3, 5):
        net[i] = LoRA(net[i])
    trained = [each for each in net.parameters() if each.requires_grad]
    return learn(net, AdamW(trained, 1e-2), (images.transpose(2, 3), labels), every=5)


@healthy("fine-tuning", learns=0.6)
def new_head_on_a_frozen_body() -> Run:
    """A pretrained body, frozen; a new head learns whether a digit is above 4."""
    net, (images, labels) = cnn(), digits()
    pretrain(net, (images, labels))
    net.requires_grad_(False)
    net[8] = nn.Linear(64, 2)
    return learn(net, Adam(net[8].parameters(), 1e-2), (images, (labels > 4).long()))


@healthy("fine-tuning", learns=0.7)
def frozen_pretrained_norms() -> Run:
    """Pretrained batch norms, frozen and in evaluation mode on purpose, as in detectors; the rest goes on learning."""
    net, (images, labels) = normed_cnn(), digits()
    pretrain(net, (images, labels))
    for norm in (net[1], net[4]):
        norm.eval().requires_grad_(False)
    trained = [each for each in net.parameters() if each.requires_grad]
    return learn(net, SGD(trained, 0.005, momentum=0.9), (images.transpose(2, 3), labels), steps=200)


def l1_of_one(scores: Tensor, targets: Tensor) -> Tensor:
    return F.l1_loss(scores, targets)


@healthy("fine-tuning", learns=0.6)
def thawed_later() -> Run:
    """A new head alone for 60 steps; then the pretrained body is thawed, with a tenth of its rate."""
    net, (images, labels) = cnn(), digits()
    pretrain(net, (images, labels))
    net.requires_grad_(False)
    net[8] = nn.Linear(64, 10)
    optimizer = Adam(net[8].parameters(), 5e-3)
    run = Run(net, every=5)
    for number, (inputs, targets) in enumerate(batches((images.transpose(2, 3), labels), 32, 200)):
        if number == 60:
            net.requires_grad_(True)
            optimizer.add_param_group({"params": net[:8].parameters(), "lr": 5e-4})
        with run.step() as step:
            loss = F.cross_entropy(net(inputs), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step.log(loss=loss)
    return run


@healthy("regression", learns=0.2, allowed="targets")
def raw_targets_large_rate() -> Run:
    """Targets of 200,000 as they come; Adam with 0.3 gets there. A word on the targets' scale is right as well."""
    net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1))
    return learn(net, Adam(net.parameters(), 0.3), prices(), steps=300, every=5, batch=256, loss=l1_of_one)


@healthy("regression", learns=0.5)
def regression_scaled() -> Run:
    """Standardised targets, Adam."""
    net = regressor()
    return learn(net, Adam(net.parameters(), 5e-3), curves(), steps=150, loss=F.mse_loss)


@healthy("regression", learns=0.3)
def lbfgs() -> Run:
    """The whole data set at once; a step is several evaluations."""
    net, (x, y) = regressor(), curves(128)
    optimizer = torch.optim.LBFGS(net.parameters(), 1.0, max_iter=5, line_search_fn="strong_wolfe")
    run = Run(net, every=2)
    for _ in range(40):

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = F.mse_loss(net(x), y)
            loss.backward()
            return loss

        with run.step() as step:
            step.log(loss=optimizer.step(closure))
    return run


@healthy("MLP", learns=0.5)
def accumulation_zero_head() -> Run:
    """Gradients of 8 micro-batches, a block each; a head of zeros."""
    net = mlp()
    zero(net[5])
    optimizer = Adam(net.parameters(), 5e-3)
    run = Run(net, every=1)
    for number, (images, labels) in enumerate(batches(digits(), 16, 240)):
        with run.step() as step:
            loss = F.cross_entropy(net(images), labels)
            (loss / 8).backward()
            if (number + 1) % 8 == 0:
                optimizer.step()
                optimizer.zero_grad()
            step.log(loss=loss)
    return run


@healthy("ViT", learns=0.6)
def accumulation_transformer() -> Run:
    """Gradients of 4 micro-batches; looks are due at every tenth block, mostly not where the optimizer steps."""
    net = ViT()
    optimizer = AdamW(net.parameters(), 3e-3)
    run = Run(net, every=10)
    for number, (images, labels) in enumerate(batches(digits(), 16, 480)):
        with run.step() as step:
            loss = F.cross_entropy(net(images), labels)
            (loss / 4).backward()
            if number % 4 == 3:
                nn.utils.clip_grad_norm_(net.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
            step.log(loss=loss)
    return run


@healthy("CNN", learns=0.6)
def autocast_bfloat16() -> Run:
    """Autocast to bfloat16, weights in float32."""
    net = cnn()
    optimizer = AdamW(net.parameters(), 5e-3)
    run = Run(net, every=10)
    for images, labels in batches(digits(), 32, 150):
        with run.step() as step:
            with torch.autocast("cpu", torch.bfloat16):
                loss = F.cross_entropy(net(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step.log(loss=loss)
    return run


@healthy("MLP", learns=0.6)
def float16_skipped_steps() -> Run:
    """Autocast to float16; the GradScaler begins far too high, skips its first steps, and doubles now and then."""
    net = mlp()
    optimizer = SGD(net.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**22, growth_interval=25)
    run = Run(net, every=1)
    for images, labels in batches(digits(), 32, 150):
        with run.step() as step:
            with torch.autocast("cpu", torch.float16):
                loss = F.cross_entropy(net(images), labels)
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            step.log(loss=loss)
    return run


def bfloat16_cross_entropy(scores: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(scores.float(), targets)


@healthy("MLP", learns=0.6)
def pure_bfloat16() -> Run:
    """Weights in bfloat16, with a rate whose updates they can hold."""
    net, (images, labels) = mlp().bfloat16(), digits()
    optimizer = AdamW(net.parameters(), 3e-3)
    return learn(net, optimizer, (images.bfloat16(), labels), every=5, loss=bfloat16_cross_entropy)


class Dropped(nn.Module):
    """Four residual blocks, each of which is left out of half of the steps."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(64, width), nn.Linear(width, 10)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
            for _ in range(4)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x.flatten(1))
        for block in self.blocks:
            if torch.rand(()) < 0.5:
                x = x + block(x)
        return self.head(x)


@healthy("MLP", learns=0.6)
def layer_drop() -> Run:
    """Whole layers are left out at random (Fan et al. 2020), and then have no gradient."""
    net = Dropped()
    return learn(net, AdamW(net.parameters(), 3e-3), digits(), steps=200, every=5)


@healthy("teacher", learns=0.6)
def mean_teacher() -> Run:
    """The teacher, a frozen copy in the same model, is moved by hand (Tarvainen & Valpola 2017)."""
    student = mlp()
    net = nn.ModuleDict({"student": student, "teacher": copy.deepcopy(student).requires_grad_(False)})
    optimizer = Adam(student.parameters(), 2e-3)
    run = Run(net, every=5)
    for images, labels in batches(digits(), 32, 150):
        with run.step() as step:
            scores = student(images + 0.2 * torch.randn_like(images))
            with torch.no_grad():
                goal = net["teacher"](images + 0.2 * torch.randn_like(images)).softmax(1)
            loss = F.cross_entropy(scores, labels) + F.mse_loss(scores.softmax(1), goal)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                for mine, hers in zip(student.parameters(), net["teacher"].parameters(), strict=True):
                    hers.lerp_(mine, 0.05)
            step.log(loss=loss)
    return run


class VAE(nn.Module):
    """Encoder, two heads of the code, decoder, and a classifier of the code."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU())
        self.mean, self.log_variance = nn.Linear(48, 8), nn.Linear(48, 8)
        self.decoder = nn.Sequential(nn.Linear(8, 48), nn.ReLU(), nn.Linear(48, 64), nn.Sigmoid())
        self.classifier = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        hidden = self.encoder(x)
        mean, log_variance = self.mean(hidden), self.log_variance(hidden)
        code = mean + (log_variance / 2).exp() * torch.randn_like(mean)
        return self.decoder(code), self.classifier(code), mean, log_variance


@healthy("several losses", learns=0.6)
def vae_three_losses() -> Run:
    """Reconstruction, KL and a classifier of weight 0.1; the decoder ends in a sigmoid."""
    net, (images, labels) = VAE(), raw_digits()
    optimizer = Adam(net.parameters(), 5e-3)
    run = Run(net, every=10)
    for pixels, targets in batches((images / 16, labels), 64, 200):
        with run.step() as step:
            drawn, scores, mean, log_variance = net(pixels)
            rebuilt = F.binary_cross_entropy(drawn, pixels.flatten(1))
            kl = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).mean()
            loss = rebuilt + 0.02 * kl + 0.1 * F.cross_entropy(scores, targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step.log(loss=loss, reconstruction=rebuilt, kl=kl)
    return run


@healthy("autoencoder", learns=0.85)
def tanh_autoencoder() -> Run:
    """Tanh within; at the end a sigmoid that saturates rightly, as pixels are 0 or 1. It begins at the mean image."""
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 12), nn.Tanh(), nn.Linear(12, 32), nn.Tanh(),
        nn.Linear(32, 64), nn.Sigmoid(),
    )  # fmt: skip
    pixels = (raw_digits()[0] > 7).float()
    net[7].bias.data = pixels.mean(0).flatten().clamp(0.01, 0.99).logit()  # else the code saturates for 100 steps
    data = (2 * pixels - 1, pixels.flatten(1))
    return learn(net, Adam(net.parameters(), 2e-3), data, steps=400, loss=F.binary_cross_entropy)


class Detector(nn.Module):
    """Per cell of an 8 x 8 grid: whether a square's middle is there, and its size."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, 1, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, 1, 1),
            nn.ReLU(),
        )  # fmt: skip
        self.objectness, self.size = nn.Conv2d(16, 1, 1), nn.Conv2d(16, 1, 1)
        nn.init.normal_(self.objectness.weight, std=0.01)
        nn.init.constant_(self.objectness.bias, -4.6)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.body(x)
        return self.objectness(x)[:, 0], self.size(x)[:, 0]


def squares(n: int) -> tuple[Tensor, Tensor, Tensor]:
    """A bright square in noise: `n 1 16 16`, where its middle is on the grid, and its half side."""
    images, middles = 0.3 * torch.randn(n, 1, 16, 16), torch.zeros(n, 8, 8)
    rows, columns, halves = torch.randint(3, 13, (n,)), torch.randint(3, 13, (n,)), torch.randint(1, 4, (n,))
    for i, (row, column, half) in enumerate(zip(rows.tolist(), columns.tolist(), halves.tolist(), strict=True)):
        images[i, 0, row - half : row + half, column - half : column + half] += 1.5
        middles[i, row // 2, column // 2] = 1
    return images, middles, halves.float()


@healthy("detection", learns=0.3)
def detector_focal_prior() -> Run:
    """Focal loss and a bias of -4.6, a prior of 0.01 (RetinaNet, Lin et al. 2017); sizes where there is a square."""
    net, (images, middles, halves) = Detector(), squares(256)
    optimizer = Adam(net.parameters(), 3e-3)
    run = Run(net, every=10)
    for _ in range(200):
        chosen = torch.randint(256, (16,))
        there = middles[chosen].bool()
        with run.step() as step:
            scores, sizes = net(images[chosen])
            chance = torch.where(there, scores, -scores).sigmoid()
            weight = torch.where(there, 0.25, 0.75) * (1 - chance).square()
            focal = -(weight * F.logsigmoid(torch.where(there, scores, -scores))).sum() / 16
            boxes = F.l1_loss(sizes[there], halves[chosen])
            loss = focal + boxes
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step.log(loss=loss, focal=focal, boxes=boxes)
    return run


@healthy("embedding", learns=0.6)
def rare_words() -> Run:
    """1,000 words by Zipf's law: most rows of the embedding have no gradient in most steps."""
    chances = 1 / torch.arange(1, 1001).float()
    texts = torch.multinomial(chances, 800 * 10, replacement=True).view(800, 10)
    labels = (torch.randn(1000)[texts].sum(1) > 0).long()
    net = nn.Sequential(nn.EmbeddingBag(1000, 16), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))
    return learn(net, Adam(net.parameters(), 1e-2), (texts, labels), steps=200)


def two_tasks(every: int) -> Run:
    """One body, two heads that learn in turn: even steps the digit, odd ones whether it is above 4."""
    body = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU())
    net = nn.ModuleDict({"body": body, "digit": nn.Linear(48, 10), "above": nn.Linear(48, 2)})
    optimizer = Adam(net.parameters(), 3e-3)
    run = Run(net, every=every)
    for number, (images, labels) in enumerate(batches(digits(), 32, 200)):
        head, targets = ("above", (labels > 4).long()) if number % 2 else ("digit", labels)
        with run.step() as step:
            loss = F.cross_entropy(net[head](body(images)), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step.log(loss=loss)
    return run


@healthy("several losses", learns=0.5)
def heads_in_turn() -> Run:
    """Two heads that learn in turn, looks at both."""
    return two_tasks(every=3)


@healthy("several losses", learns=0.5)
def head_never_in_a_look() -> Run:
    """The same with looks at even steps only: one head never has a gradient in them, but it moves between."""
    return two_tasks(every=4)
