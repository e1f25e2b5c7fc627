/* schemas/image_jpeg_rgb.c - where upsampling and colours are taken out of the library's hands (contract in image_jpeg_rgb.h).
 *
 * Its post-processing is called with groups of rows: two of luma and one each of chroma, which have the neighbouring groups' rows above and below them (its own "fancy"
 * upsampling needs those, too), and with room for some rows of the result; it may stop in the middle of a group. */
#include "schemas/image_jpeg_inside.h"
#include "schemas/image_jpeg_rgb.h"

#ifdef IMAGE_JPEG_INSIDE

#define GROUP_ROWS 2u

struct post {
    struct jpeg_d_post_controller library; /* first: the library holds a pointer to it */
    struct image_jpeg_rgb row;
    uint32_t made;                    /* rows of the group in hand */
    uint32_t left;                    /* rows of the picture */
};

static void start_pass(j_decompress_ptr j, J_BUF_MODE mode) { (void)j, (void)mode; }

static void make_rows(j_decompress_ptr j, JSAMPIMAGE in, JDIMENSION *group, JDIMENSION groups, JSAMPARRAY out, JDIMENSION *out_row, JDIMENSION out_rows)
{
    struct post *p = (struct post *)j->post;

    (void)groups;                     /* at least the one in hand */
    while (p->made < GROUP_ROWS && p->left > 0 && *out_row < out_rows) {
        const int at = (int)*group, beside = p->made == 0 ? at - 1 : at + 1;
        const uint8_t *const near[2] = {in[1][at], in[2][at]}, *const other[2] = {in[1][beside], in[2][beside]};
        image_jpeg_rgb_row(&p->row, in[0][at * (int)GROUP_ROWS + (int)p->made], near, other, out[*out_row]);
        (*out_row)++;
        p->made++;
        p->left--;
    }
    if (p->made < GROUP_ROWS && p->left > 0) return;
    p->made = 0;
    (*group)++;
}

static bool is_usual(j_decompress_ptr j)
{
    const jpeg_component_info *c = j->comp_info;

    if (j->num_components != 3 || j->jpeg_color_space != JCS_YCbCr || j->out_color_space != JCS_RGB || j->quantize_colors || !j->do_fancy_upsampling) return false;
    if (j->max_h_samp_factor != 2 || j->max_v_samp_factor != 2 || j->min_DCT_scaled_size != DCTSIZE || j->output_width != j->image_width) return false;
    for (int i = 0; i < 3; i++)
        if (c[i].h_samp_factor != (i ? 1 : 2) || c[i].v_samp_factor != (i ? 1 : 2) || c[i].DCT_scaled_size != DCTSIZE || !c[i].component_needed) return false;
    return c[1].downsampled_width > 2 && j->upsample->need_context_rows; /* else the library repeats pixels, which is something else */
}

void image_jpeg_make_rgb(j_decompress_ptr j)
{
    if (!is_usual(j) || !image_jpeg_rgb_is_here()) return;
    struct post *p = j->mem->alloc_small((j_common_ptr)j, JPOOL_IMAGE, sizeof *p);
    const uint32_t chroma = j->comp_info[1].downsampled_width;

    *p = (struct post){.library = {.start_pass = start_pass, .post_process_data = make_rows}, .row = {.width = j->output_width, .chroma_width = chroma}, .left = j->output_height};
    for (int c = 0; c < 2; c++) p->row.sum[c] = j->mem->alloc_large((j_common_ptr)j, JPOOL_IMAGE, (chroma + 2 + IMAGE_JPEG_RGB_PAD) * sizeof(int16_t));
    image_jpeg_rgb_prepare(&p->row);
    j->post = &p->library;
}

#else

void image_jpeg_make_rgb(j_decompress_ptr j) { (void)j; }

#endif
