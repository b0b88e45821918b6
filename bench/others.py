"""Networks of packages from PyPI that nobody here wrote, for `bench/coverage.py --others`: by name how to build each.

Small ones of each architecture, from configurations alone: no weights are downloaded. Each entry returns a model and
its example inputs (a tensor, a tuple of arguments or a dict of keywords).
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

Net = tuple[Any, Any]
NETS: dict[str, Callable[[], Net]] = {}


def net(name: str) -> Callable:
    def add(build: Callable[[], Net]) -> Callable[[], Net]:
        NETS[name] = build
        return build

    return add


def image(*shape: int) -> Any:
    import torch

    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def tokens(n: int, length: int, vocabulary: int) -> Any:
    import torch

    return torch.randint(3, vocabulary, (n, length), generator=torch.Generator().manual_seed(1))


def made(name: str, module: str, cls: str, inputs: Callable[[], Any], *args: Any, **options: Any) -> None:
    """An entry that calls one class or function of a package."""

    def build() -> Net:
        return getattr(import_module(module), cls)(*args, **options), inputs()

    NETS[name] = build


PIXELS = lambda: image(2, 3, 64, 64)  # noqa: E731

# transformers ------------------------------------------------------------------------------------------------------


def hugging(name: str, cls: str, config: str, inputs: Callable[[], Any], **options: Any) -> None:
    def build() -> Net:
        import transformers

        return getattr(transformers, cls)(getattr(transformers, config)(**options)), inputs()

    NETS[f"transformers:{name}"] = build


def words() -> Any:
    return {"input_ids": tokens(2, 12, 90)}


def pixel_values() -> Any:
    return {"pixel_values": PIXELS()}


BERT = {"vocab_size": 90, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
hugging("gpt2", "GPT2LMHeadModel", "GPT2Config", words, vocab_size=90, n_positions=32, n_embd=48, n_layer=2, n_head=4)
hugging("llama", "LlamaForCausalLM", "LlamaConfig", words, num_key_value_heads=2, **BERT)
hugging("mistral", "MistralForCausalLM", "MistralConfig", words, num_key_value_heads=2, **BERT)
hugging("bert", "BertForSequenceClassification", "BertConfig", words, num_labels=5, **BERT)
hugging("roberta", "RobertaForTokenClassification", "RobertaConfig", words, num_labels=5, pad_token_id=1, **BERT)
hugging("distilbert", "DistilBertForSequenceClassification", "DistilBertConfig", words, vocab_size=90, dim=48,
        n_layers=2, n_heads=4, hidden_dim=96)  # fmt: skip
hugging("vit", "ViTForImageClassification", "ViTConfig", pixel_values, image_size=64, patch_size=16, **BERT)
hugging("dinov2", "Dinov2ForImageClassification", "Dinov2Config", pixel_values, image_size=64, patch_size=16, **BERT)
hugging("swin", "SwinForImageClassification", "SwinConfig", pixel_values, image_size=64, embed_dim=24, depths=[1, 1],
        num_heads=[2, 4], window_size=4)  # fmt: skip
hugging("convnextv2", "ConvNextV2ForImageClassification", "ConvNextV2Config", pixel_values, depths=[1, 1, 2, 1],
        hidden_sizes=[16, 24, 32, 48])  # fmt: skip
hugging("segformer", "SegformerForSemanticSegmentation", "SegformerConfig", pixel_values, depths=[1, 1, 1, 1],
        hidden_sizes=[16, 24, 32, 48], decoder_hidden_size=32)  # fmt: skip
hugging("resnet", "ResNetForImageClassification", "ResNetConfig", pixel_values, embedding_size=16,
        hidden_sizes=[32, 48], depths=[1, 1])  # fmt: skip
hugging("mobilenetv2", "MobileNetV2ForImageClassification", "MobileNetV2Config", pixel_values, depth_multiplier=0.5)
hugging("t5-encoder", "T5EncoderModel", "T5Config", words, vocab_size=90, d_model=48, d_kv=12, d_ff=96, num_layers=2,
        num_heads=4)  # fmt: skip


@net("transformers:detr")
def _() -> Net:
    import transformers

    backbone = transformers.ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 24, 32, 48], depths=[1, 1, 1, 1], out_features=["stage4"]
    )
    config = transformers.DetrConfig(
        use_timm_backbone=False, backbone_config=backbone, backbone=None, use_pretrained_backbone=False, d_model=32,
        encoder_layers=1, decoder_layers=1, encoder_attention_heads=4, decoder_attention_heads=4, num_queries=7,
        encoder_ffn_dim=64, decoder_ffn_dim=64,
    )  # fmt: skip
    return transformers.DetrForObjectDetection(config), pixel_values()


# vit-pytorch -------------------------------------------------------------------------------------------------------

VIT = {"image_size": 64, "patch_size": 16, "num_classes": 5, "dim": 48, "depth": 2, "heads": 4, "mlp_dim": 96}
made("vit-pytorch:ViT", "vit_pytorch", "ViT", PIXELS, dim_head=12, **VIT)
made("vit-pytorch:SimpleViT", "vit_pytorch", "SimpleViT", PIXELS, dim_head=12, **VIT)
made("vit-pytorch:DeepViT", "vit_pytorch.deepvit", "DeepViT", PIXELS, dim_head=12, **VIT)
made("vit-pytorch:CaiT", "vit_pytorch.cait", "CaiT", PIXELS, dim_head=12, cls_depth=1, **VIT)
made("vit-pytorch:PiT", "vit_pytorch.pit", "PiT", PIXELS, image_size=64, patch_size=16, dim=48, num_classes=5,
     depth=(1, 1), heads=4, mlp_dim=96, dim_head=12)  # fmt: skip
made("vit-pytorch:CCT", "vit_pytorch.cct", "CCT", PIXELS, img_size=(64, 64), embedding_dim=48, n_conv_layers=2,
     num_layers=2, num_heads=4, mlp_ratio=2.0, num_classes=5)  # fmt: skip
made("vit-pytorch:LeViT", "vit_pytorch.levit", "LeViT", PIXELS, image_size=64, num_classes=5, stages=2, dim=(32, 48),
     depth=1, heads=(2, 4), mlp_mult=2)  # fmt: skip
made("vit-pytorch:CvT", "vit_pytorch.cvt", "CvT", PIXELS, num_classes=5, s1_emb_dim=16, s2_emb_dim=24, s3_emb_dim=32,
     s1_heads=1, s2_heads=2, s3_heads=2, s3_depth=2)  # fmt: skip
made("vit-pytorch:MobileViT", "vit_pytorch.mobile_vit", "MobileViT", PIXELS, image_size=(64, 64), dims=[24, 32, 40],
     channels=[8, 16, 16, 16, 24, 24, 32, 32, 40, 40, 64], num_classes=5)  # fmt: skip
made("vit-pytorch:MaxViT", "vit_pytorch.max_vit", "MaxViT", lambda: image(2, 3, 112, 112), num_classes=5,
     dim_conv_stem=16, dim=32, dim_head=16, depth=(1, 1), window_size=7)  # fmt: skip

# segmentation-models-pytorch ---------------------------------------------------------------------------------------

for _arch, _encoder in {
    "Unet": "resnet18",
    "UnetPlusPlus": "mobilenet_v2",
    "FPN": "resnet18",
    "DeepLabV3Plus": "resnet18",
    "Linknet": "efficientnet-b0",
    "PSPNet": "densenet121",
    "Segformer": "mit_b0",
}.items():
    made(f"segmentation-models-pytorch:{_arch}", "segmentation_models_pytorch", _arch, PIXELS, _encoder,
         encoder_weights=None)  # fmt: skip

# monai -------------------------------------------------------------------------------------------------------------

PLANE = lambda: image(2, 1, 64, 64)  # noqa: E731
made("monai:UNet", "monai.networks.nets", "UNet", PLANE, spatial_dims=2, in_channels=1, out_channels=2,
     channels=(8, 16, 32), strides=(2, 2), num_res_units=2)  # fmt: skip
made("monai:BasicUNet", "monai.networks.nets", "BasicUNet", PLANE, spatial_dims=2, in_channels=1, out_channels=2,
     features=(8, 8, 16, 32, 64, 8))  # fmt: skip
made("monai:SegResNet", "monai.networks.nets", "SegResNet", PLANE, spatial_dims=2, init_filters=8, in_channels=1,
     out_channels=2)  # fmt: skip
made("monai:DenseNet121", "monai.networks.nets", "DenseNet121", PLANE, spatial_dims=2, in_channels=1, out_channels=2)
made("monai:AttentionUnet", "monai.networks.nets", "AttentionUnet", PLANE, spatial_dims=2, in_channels=1,
     out_channels=2, channels=(8, 16, 32), strides=(2, 2))  # fmt: skip
made("monai:VNet", "monai.networks.nets", "VNet", PLANE, spatial_dims=2, in_channels=1, out_channels=2)
made("monai:DynUNet", "monai.networks.nets", "DynUNet", PLANE, spatial_dims=2, in_channels=1, out_channels=2,
     kernel_size=[3, 3, 3], strides=[1, 2, 2], upsample_kernel_size=[2, 2], filters=[8, 16, 32])  # fmt: skip
made("monai:UNETR", "monai.networks.nets", "UNETR", PLANE, in_channels=1, out_channels=2, img_size=64, feature_size=8,
     hidden_size=48, mlp_dim=96, num_heads=4, spatial_dims=2)  # fmt: skip

# diffusion -----------------------------------------------------------------------------------------------------------


@net("diffusers:UNet2DModel")
def _() -> Net:
    import diffusers

    model = diffusers.UNet2DModel(
        sample_size=32, block_out_channels=(16, 32), norm_num_groups=4, attention_head_dim=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    return model, (image(2, 3, 32, 32), 7)


@net("diffusers:AutoencoderKL")
def _() -> Net:
    import diffusers

    return diffusers.AutoencoderKL(
        block_out_channels=(16, 32), norm_num_groups=4, down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    ), image(2, 3, 32, 32)  # fmt: skip


@net("diffusers:DiTTransformer2DModel")
def _() -> Net:
    import diffusers
    import torch

    model = diffusers.DiTTransformer2DModel(
        num_attention_heads=4, attention_head_dim=12, num_layers=2, sample_size=16, num_embeds_ada_norm=10
    )
    return model, {"hidden_states": image(2, 4, 16, 16), "timestep": torch.tensor([3, 5]),
                   "class_labels": torch.tensor([1, 2])}  # fmt: skip


@net("denoising-diffusion-pytorch:Unet")
def _() -> Net:
    import torch
    from denoising_diffusion_pytorch import Unet

    return Unet(dim=16, dim_mults=(1, 2), flash_attn=False), (image(2, 3, 32, 32), torch.tensor([3, 5]))


# detection ---------------------------------------------------------------------------------------------------------


def yolo(config: str) -> Callable[[], Net]:
    def build() -> Net:
        from ultralytics.nn import tasks

        kind = (
            "SegmentationModel" if "seg" in config else "ClassificationModel" if "cls" in config else "DetectionModel"
        )
        return getattr(tasks, kind)(config, verbose=False), PIXELS()

    return build


NETS |= {f"ultralytics:{name}": yolo(f"{name}.yaml")
         for name in ("yolov5n", "yolov8n", "yolov8n-seg", "yolo11n", "yolov8n-cls")}  # fmt: skip


def detector(name: str, size: int) -> Callable[[], Net]:
    def build() -> Net:
        import torchvision

        options = {} if name.startswith("ssd") else {"min_size": size, "max_size": size}
        model = torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=5, **options)
        return model, ([image(3, size, size)],)

    return build


NETS |= {
    "torchvision:fasterrcnn_resnet50_fpn": detector("fasterrcnn_resnet50_fpn", 96),
    "torchvision:retinanet_resnet50_fpn": detector("retinanet_resnet50_fpn", 96),
    "torchvision:ssdlite320_mobilenet_v3_large": detector("ssdlite320_mobilenet_v3_large", 320),
}

# images ------------------------------------------------------------------------------------------------------------


@net("efficientnet-pytorch:efficientnet-b0")
def _() -> Net:
    from efficientnet_pytorch import EfficientNet

    return EfficientNet.from_name("efficientnet-b0", num_classes=5), PIXELS()


for _name, _size in {"se_resnet50": 224, "xception": 96, "dpn68": 224, "bninception": 224}.items():
    made(f"pretrainedmodels:{_name}", "pretrainedmodels", _name, lambda size=_size: image(2, 3, size, size),
         pretrained=None)  # fmt: skip
for _name, _size in {
    "resnet20_cifar10": 32,
    "seresnet20_cifar10": 32,
    "densenet40_k12_cifar10": 32,
    "pyramidnet110_a48_cifar10": 32,
    "mobilenet_wd4": 224,
    "shufflenet_g1_wd4": 224,
    "ghostnet": 224,
}.items():
    made(f"pytorchcv:{_name}", "pytorchcv.model_provider", "get_model", lambda size=_size: image(2, 3, size, size),
         _name, pretrained=False)  # fmt: skip


@net("open-clip-torch:RN50")
def _() -> Net:
    import open_clip
    import torch

    vision = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None}
    text = {"context_length": 12, "vocab_size": 90, "width": 48, "heads": 4, "layers": 2}
    model = open_clip.CLIP(embed_dim=32, vision_cfg=vision, text_cfg=text)
    return model, (PIXELS(), torch.cat([tokens(2, 11, 80), torch.full((2, 1), 89)], 1))


@net("open-clip-torch:ViT")
def _() -> Net:
    import open_clip
    import torch

    vision = {"image_size": 64, "layers": 2, "width": 48, "patch_size": 16, "head_width": 12}
    text = {"context_length": 12, "vocab_size": 90, "width": 48, "heads": 4, "layers": 2}
    model = open_clip.CLIP(embed_dim=32, vision_cfg=vision, text_cfg=text)
    return model, (PIXELS(), torch.cat([tokens(2, 11, 80), torch.full((2, 1), 89)], 1))


@net("lpips:alex")
def _() -> Net:
    import lpips

    return lpips.LPIPS(net="alex", pretrained=False, pnet_rand=True, verbose=False), (PIXELS(), image(2, 3, 64, 64) / 2)


made("kornia:HardNet", "kornia.feature", "HardNet", lambda: image(2, 1, 32, 32), pretrained=False)
made("kornia:TFeat", "kornia.feature", "TFeat", lambda: image(2, 1, 32, 32), pretrained=False)
made("facenet-pytorch:InceptionResnetV1", "facenet_pytorch", "InceptionResnetV1", lambda: image(2, 3, 96, 96),
     classify=True, num_classes=5)  # fmt: skip
made("torchsr:edsr", "torchsr.models", "edsr_r16f64", lambda: image(2, 3, 16, 16), scale=2, pretrained=False)
made("torchsr:ninasr", "torchsr.models", "ninasr_b0", lambda: image(2, 3, 16, 16), scale=2, pretrained=False)
made("torchxrayvision:DenseNet", "torchxrayvision.models", "DenseNet", lambda: image(2, 1, 64, 64), weights=None)


@net("segment-anything:ImageEncoderViT")
def _() -> Net:
    from segment_anything.modeling import ImageEncoderViT

    return ImageEncoderViT(img_size=64, embed_dim=48, depth=2, num_heads=4, out_chans=16, use_rel_pos=True,
                           window_size=2, global_attn_indexes=(1,)), PIXELS()  # fmt: skip


@net("lightly:SimSiam")
def _() -> Net:
    from lightly.models import ResNetGenerator
    from lightly.models.modules import SimSiamPredictionHead, SimSiamProjectionHead
    from torch import nn

    backbone = nn.Sequential(*list(ResNetGenerator("resnet-9").children())[:-1], nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(backbone, SimSiamProjectionHead(512, 64, 32), SimSiamPredictionHead(32, 16, 32)), PIXELS()


made("perceiver-pytorch:Perceiver", "perceiver_pytorch", "Perceiver", lambda: image(2, 16, 16, 3), num_freq_bands=4,
     depth=2, max_freq=10.0, num_latents=8, latent_dim=32, cross_dim_head=8, latent_heads=4, latent_dim_head=8,
     num_classes=5)  # fmt: skip
made("g-mlp-pytorch:gMLPVision", "g_mlp_pytorch", "gMLPVision", PIXELS, image_size=64, patch_size=16, num_classes=5,
     dim=48, depth=2)  # fmt: skip
made("mlp-mixer-pytorch:MLPMixer", "mlp_mixer_pytorch", "MLPMixer", PIXELS, image_size=64, channels=3, patch_size=16,
     dim=48, depth=2, num_classes=5)  # fmt: skip


@net("lambda-networks:LambdaLayer")
def _() -> Net:
    from lambda_networks import LambdaLayer
    from torch import nn

    return nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU(),
                         LambdaLayer(dim=32, dim_out=32, r=5, dim_k=8, heads=4, dim_u=1), nn.BatchNorm2d(32), nn.ReLU(),
                         nn.Conv2d(32, 5, 1)), image(2, 3, 16, 16)  # fmt: skip


made("siren-pytorch:SirenNet", "siren_pytorch", "SirenNet", lambda: image(9, 2), dim_in=2, dim_hidden=32, dim_out=3,
     num_layers=3)  # fmt: skip
made("timesformer-pytorch:TimeSformer", "timesformer_pytorch", "TimeSformer", lambda: image(2, 3, 3, 32, 32), dim=48,
     image_size=32, patch_size=16, num_frames=3, num_classes=5, depth=2, heads=4, dim_head=12)  # fmt: skip

# sequences ---------------------------------------------------------------------------------------------------------


@net("x-transformers:Decoder")
def _() -> Net:
    from x_transformers import Decoder, TransformerWrapper

    layers = Decoder(dim=48, depth=2, heads=4, attn_dim_head=12, rotary_pos_emb=True)
    return TransformerWrapper(num_tokens=90, max_seq_len=16, attn_layers=layers), tokens(2, 12, 90)


@net("x-transformers:ViT")
def _() -> Net:
    from x_transformers import Encoder, ViTransformerWrapper

    layers = Encoder(dim=48, depth=2, heads=4, attn_dim_head=12)
    return ViTransformerWrapper(image_size=64, patch_size=16, num_classes=5, attn_layers=layers), PIXELS()


made("linformer:LinformerLM", "linformer", "LinformerLM", lambda: tokens(2, 16, 90), num_tokens=90, dim=48, seq_len=16,
     depth=2, heads=4, dim_head=12, k=8)  # fmt: skip
made("performer-pytorch:PerformerLM", "performer_pytorch", "PerformerLM", lambda: tokens(2, 16, 90), num_tokens=90,
     max_seq_len=16, dim=48, depth=2, heads=4, dim_head=12)  # fmt: skip
made("local-attention:LocalTransformer", "local_attention", "LocalTransformer", lambda: tokens(2, 16, 90),
     num_tokens=90, dim=48, depth=2, max_seq_len=16, heads=4, dim_head=12, local_attn_window_size=8)  # fmt: skip
made("nystrom-attention:Nystromformer", "nystrom_attention", "Nystromformer", lambda: image(2, 16, 48), dim=48,
     dim_head=12, heads=4, depth=2, num_landmarks=8)  # fmt: skip
made("conformer:Conformer", "conformer", "Conformer", lambda: image(2, 16, 48), dim=48, depth=2, dim_head=12, heads=4,
     conv_kernel_size=7)  # fmt: skip
made("pytorch-tcn:TCN", "pytorch_tcn", "TCN", lambda: image(2, 6, 20), num_inputs=6, num_channels=[16, 24, 32],
     kernel_size=3, causal=True)  # fmt: skip


@net("mambapy:Mamba")
def _() -> Net:
    from mambapy.mamba import Mamba, MambaConfig

    return Mamba(MambaConfig(d_model=24, n_layers=2)), image(2, 8, 24)


for _name, _options in {
    "InceptionTime": {},
    "ResNet": {},
    "XceptionTime": {},
    "TST": {"seq_len": 40, "d_model": 32, "n_heads": 4, "d_ff": 64, "n_layers": 2},
    "OmniScaleCNN": {"seq_len": 40},
}.items():
    made(f"tsai:{_name}", "tsai.models.all", _name, lambda: image(2, 4, 40), 4, 5, **_options)

# tables and policies -----------------------------------------------------------------------------------------------

made("rtdl-revisiting-models:MLP", "rtdl_revisiting_models", "MLP", lambda: image(5, 8), d_in=8, d_out=3, n_blocks=2,
     d_block=32, dropout=0.1)  # fmt: skip
made("rtdl-revisiting-models:ResNet", "rtdl_revisiting_models", "ResNet", lambda: image(5, 8), d_in=8, d_out=3,
     n_blocks=2, d_block=32, d_hidden=None, d_hidden_multiplier=2.0, dropout1=0.1, dropout2=0.1)  # fmt: skip
made("rtdl-revisiting-models:FTTransformer", "rtdl_revisiting_models", "FTTransformer",
     lambda: (image(5, 8), tokens(5, 2, 5)), n_cont_features=8, cat_cardinalities=[5, 6], d_out=3, n_blocks=2,
     d_block=48, attention_n_heads=4, attention_dropout=0.1, ffn_d_hidden=None, ffn_d_hidden_multiplier=2.0,
     ffn_dropout=0.1, residual_dropout=0.0)  # fmt: skip


@net("pytorch-tabnet:TabNet")
def _() -> Net:
    import torch
    from pytorch_tabnet.tab_network import TabNet

    return TabNet(8, 3, group_attention_matrix=torch.eye(8)), image(5, 8)


@net("tab-transformer-pytorch:TabTransformer")
def _() -> Net:
    from tab_transformer_pytorch import TabTransformer
    from torch import nn

    model = TabTransformer(
        categories=(5, 6, 7), num_continuous=4, dim=32, dim_out=3, depth=2, heads=4, mlp_act=nn.ReLU()
    )
    return model, (tokens(5, 3, 5), image(5, 4))


def policy(kind: str) -> Callable[[], Net]:
    def build() -> Net:
        import numpy as np
        from gymnasium import spaces
        from stable_baselines3.common.policies import ActorCriticCnnPolicy, ActorCriticPolicy

        pixels = spaces.Box(0, 255, (3, 64, 64), np.uint8)
        if kind == "MlpPolicy":
            box = spaces.Box(-1, 1, (6,), np.float32)
            return ActorCriticPolicy(box, spaces.Discrete(3), lambda _: 1e-3), (image(4, 6), True)
        return ActorCriticCnnPolicy(pixels, spaces.Discrete(3), lambda _: 1e-3), (image(2, 3, 64, 64).abs() * 60, True)

    return build


NETS |= {f"stable-baselines3:{kind}": policy(kind) for kind in ("MlpPolicy", "CnnPolicy")}


@net("torch-geometric:dense")
def _() -> Net:
    import torch
    from torch import nn
    from torch_geometric.nn import DenseGCNConv, DenseGINConv, DenseSAGEConv

    class Dense(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = DenseGCNConv(6, 16), DenseSAGEConv(16, 24)
            self.third, self.last = DenseGINConv(nn.Sequential(nn.Linear(24, 24), nn.ReLU())), nn.Linear(24, 3)

        def forward(self, x: Any, adjacency: Any) -> Any:
            for layer in (self.first, self.second, self.third):
                x = layer(x, adjacency).relu()
            return self.last(x.mean(1))

    return Dense(), (image(2, 7, 6), (image(2, 7, 7) > 0).float() + torch.eye(7))


# sound -------------------------------------------------------------------------------------------------------------

made("torchaudio:Wav2Letter", "torchaudio.models", "Wav2Letter", lambda: image(2, 1, 4000), num_classes=5)
made("torchaudio:ConvTasNet", "torchaudio.models", "ConvTasNet", lambda: image(2, 1, 800), enc_num_feats=32,
     msk_num_feats=16, msk_num_hidden_feats=32, msk_num_layers=2, msk_num_stacks=2)  # fmt: skip
made("torchaudio:DeepSpeech", "torchaudio.models", "DeepSpeech", lambda: image(2, 1, 12, 20), n_feature=20,
     n_hidden=32, n_class=5)  # fmt: skip


@net("torchaudio:Conformer")
def _() -> Net:
    import torch
    from torchaudio.models import Conformer

    model = Conformer(input_dim=24, num_heads=4, ffn_dim=48, num_layers=2, depthwise_conv_kernel_size=5)
    return model, (image(2, 12, 24), torch.tensor([12, 12]))


@net("encodec:EncodecModel")
def _() -> Net:
    from encodec.modules import SEANetDecoder, SEANetEncoder
    from torch import nn

    options = {"channels": 1, "dimension": 16, "n_filters": 4, "ratios": [4, 2], "lstm": 0}
    return nn.Sequential(SEANetEncoder(**options), SEANetDecoder(**options)), image(2, 1, 320)


made("demucs:Demucs", "demucs.demucs", "Demucs", lambda: image(1, 2, 4096), sources=["a", "b"], channels=8, depth=3,
     lstm_layers=0, dconv_attn=9, dconv_lstm=9)  # fmt: skip
made("asteroid:ConvTasNet", "asteroid.models", "ConvTasNet", lambda: image(2, 1, 800), n_src=2, n_filters=32,
     bn_chan=16, hid_chan=32, skip_chan=16, n_blocks=2, n_repeats=2)  # fmt: skip
made("speechbrain:ECAPA_TDNN", "speechbrain.lobes.models.ECAPA_TDNN", "ECAPA_TDNN", lambda: image(2, 20, 16), 16,
     channels=[32, 32, 32, 32, 96], attention_channels=16, lin_neurons=24)  # fmt: skip
made("speechbrain:Xvector", "speechbrain.lobes.models.Xvector", "Xvector", lambda: image(2, 40, 16), in_channels=16,
     tdnn_channels=[32, 32, 32, 32, 48], lin_neurons=24)  # fmt: skip


def eeg(name: str, **options: Any) -> Callable[[], Net]:
    def build() -> Net:
        from braindecode import models

        return getattr(models, name)(n_chans=8, n_outputs=3, n_times=500, **options), image(2, 8, 500)

    return build


NETS |= {
    "braindecode:ShallowFBCSPNet": eeg("ShallowFBCSPNet", final_conv_length="auto"),
    "braindecode:Deep4Net": eeg("Deep4Net", final_conv_length="auto"),
    "braindecode:EEGNet": eeg("EEGNet", final_conv_length="auto"),
}
made("neuraloperator:FNO", "neuralop.models", "FNO", lambda: image(2, 1, 16, 16), n_modes=(8, 8), in_channels=1,
     out_channels=1, hidden_channels=16, n_layers=2)  # fmt: skip
