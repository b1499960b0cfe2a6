"""Pi3's blocks and GeoMotion's trained part in torch, written from their description with upstream's names."""

import torch
from torch import nn
from torch.nn import functional as F


def positions(height: int, width: int, registers: int) -> torch.Tensor:
    """(row, column) of a frame's tokens, [R + h w, 2]: 0 for registers, from 1 on for patches."""
    rows, columns = torch.meshgrid(torch.arange(height) + 1, torch.arange(width) + 1, indexing="ij")
    patches = torch.stack([rows.flatten(), columns.flatten()], -1)
    return torch.cat([torch.zeros(registers, 2, dtype=patches.dtype), patches])


def rotated(x: torch.Tensor, where: torch.Tensor, base: float) -> torch.Tensor:
    """x [B, heads, T, H]: its first half turns by the row, its second by the column, as complex numbers."""
    parts = []
    for axis, half in enumerate(x.chunk(2, -1)):
        count = half.shape[-1] // 2
        angles = where[:, axis, None].double() * base ** (-torch.arange(count).double() / count)
        near, far = half.double().chunk(2, -1)
        turned = torch.complex(near, far) * torch.polar(torch.ones_like(angles), angles)
        parts += [turned.real, turned.imag]
    return torch.cat(parts, -1).to(x.dtype)


class Attention(nn.Module):
    def __init__(self, width, heads, qk_norm):
        super().__init__()
        self.qkv, self.proj, self.heads = nn.Linear(width, 3 * width), nn.Linear(width, width), heads
        self.q_norm, self.k_norm = (nn.LayerNorm(width // heads) if qk_norm else nn.Identity() for _ in range(2))

    def forward(self, x, where, base):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = self.q_norm(q), self.k_norm(k)
        if where is not None:
            q, k = rotated(q, where, base), rotated(k, where, base)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Scale(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return x * self.gamma


class Block(nn.Module):
    def __init__(self, width, heads, *, qk_norm=False, layer_scale=False, eps=1e-6, base=100.0):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=eps), nn.LayerNorm(width, eps=eps)
        self.attn = Attention(width, heads, qk_norm)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})
        self.ls1, self.ls2 = (Scale(width) if layer_scale else nn.Identity() for _ in range(2))
        self.base = base

    def forward(self, x, where=None):
        x = x + self.ls1(self.attn(self.norm1(x), where, self.base))
        return x + self.ls2(self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x)))))


class HeadDecoder(nn.Module):
    def __init__(self, inputs, width, outputs, heads, depth):
        super().__init__()
        self.projects, self.linear_out = nn.Linear(inputs, width), nn.Linear(width, outputs)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))

    def forward(self, x, where):
        x = self.projects(x)
        for block in self.blocks:
            x = block(x, where)
        return self.linear_out(x)


class Fusion(nn.Module):
    def __init__(self, inputs, width, channels, camera):
        super().__init__()
        one, two, three = channels
        self.feature_proj = nn.Sequential(nn.Linear(inputs, width), nn.ReLU())
        convs = [nn.Conv2d(a, b, 3, padding=1) for a, b in ((1, one), (one, two), (two, three))]
        self.flow_encoder = nn.Sequential(*(layer for conv in convs for layer in (conv, nn.ReLU())))
        self.fusion_proj = nn.Linear(width + three + camera, width)

    def forward(self, low, high, camera, flow, registers):
        features = self.feature_proj(torch.cat([low, high], -1))
        grid = tuple(side // 14 for side in flow.shape[1:])
        seen = F.interpolate(self.flow_encoder(flow[:, None]), size=grid, mode="bilinear", align_corners=False)
        patches = torch.cat([features[:, registers:], seen.flatten(2).transpose(1, 2), camera[:, registers:]], -1)
        return torch.cat([features[:, :registers], self.fusion_proj(patches)], 1)


class Motion(nn.Module):
    """GeoMotion's trained part: fusion, motion decoder, logits."""

    def __init__(self, cfg):
        super().__init__()
        pi3 = cfg.pi3
        self.motion_aware_decoder = Fusion(4 * pi3.width, cfg.feature_width, cfg.flow_channels, pi3.camera_width)
        self.conf_decoder = HeadDecoder(
            cfg.feature_width, pi3.head_width, pi3.conf_width, pi3.head_heads, pi3.head_depth
        )
        self.conf_head = nn.ModuleDict({"proj": nn.Linear(pi3.conf_width, 196)})
        self.registers = pi3.register_tokens

    def forward(self, low, high, camera, flow):
        """Tokens and flow, a row a frame -> logits [B, H, W]."""
        height, width = (side // 14 for side in flow.shape[1:])
        fused = self.motion_aware_decoder(low, high, camera, flow, self.registers)
        decoded = self.conf_decoder(fused, positions(height, width, self.registers))[:, self.registers :]
        patches = self.conf_head["proj"](decoded).transpose(1, 2).unflatten(-1, (height, width))
        return F.pixel_shuffle(patches, 14)[:, 0]
